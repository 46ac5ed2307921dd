"""What an attacker would send: made by these modules, the same each time, and never committed.

`python -m tests.hostile FOLDER` writes every file of the corpus, to look at or to send elsewhere.
"""
