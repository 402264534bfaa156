"""Takes an order: keeps the goods back, takes the money."""

import time

from app import call, serve, write_down


def order(_path, body):
    write_down("shop", order=body["order"])
    call("http://stock/reservations", {"order": body["order"], "item": body["item"], "amount": body["amount"]})
    time.sleep(0.02)  # Thinks about the price.
    payment = call("http://payment/charges", {"order": body["order"], "cents": 1000 * body["amount"]})
    return {"order": body["order"], "receipt": payment["receipt"]}


serve(order)
