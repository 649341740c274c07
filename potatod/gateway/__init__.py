"""HTTP for the tools that people have. Law: a client of the front like any other; it knows nothing that `potato-client` could not ask for.

    HTTP ─▶ listener ─▶ guard ─▶ app ─▶ asking (body → question) ─▶ upstream ─▶ front
    HTTP ◀─ answers of chat, completions, responses, batches, jobs, metrics ◀──┘

``guard`` decides who may ask, ``body`` what is understood, ``upstream`` holds the connections to the front, and what becomes of an answer whose client
has left. Whatever is asked for is a job: it is on disk before a client hears of it.
"""
