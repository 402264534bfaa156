"""Keeps goods back for an order. The same order twice is one reservation: that is what an app owes to a caller who tries again."""

from app import serve, write_down


def reserve(_path, body):
    write_down("stock", order=body["order"])
    return {"reserved": body["amount"]}


serve(reserve)
