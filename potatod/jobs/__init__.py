"""Jobs as they are kept: what a client asked for and what has come of it, through restarts and power cuts.

    front ──▶ journal (a thread) ──▶ database (SQLite) ──▶ disk
                 one commit for all that happened meanwhile

Nothing that a client is told happens before it is on disk. ``potatod jobs`` reads the same file while no daemon does.
"""
