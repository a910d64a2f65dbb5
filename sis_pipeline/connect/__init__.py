"""Talking to the outside: the HTTP door, OAuth, the token vault, rate limits and error classes. Nothing here knows a vendor or a roster."""
