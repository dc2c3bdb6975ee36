"""`nas-dynamic doctor`: what works of this installation, and what a supernet of one's own needs."""
