"""
What runs on Lambda during `plungepool verify-aws`: database.py looks at proxy and database, shutdown.py at the
environment.
"""
