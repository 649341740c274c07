"""The peers of `benchmarks/against_peers.py`: each in an environment of its own, none of them a dependency of ours.

environments.py makes their environments, models.py writes the checkpoint in the forms they read, run_*.py are the programs that answer, one for each,
run by that peer's own Python. All of them say what arrives in the words of arrivals.py.
"""
