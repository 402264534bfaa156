"""Sends receipts."""

from app import serve, write_down


def send(_path, body):
    write_down("mail", order=body["order"])
    return {"sent": True}


serve(send)
