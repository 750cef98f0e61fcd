"""The local stack: Prefect server, MLflow server and a worker on this machine, from the installed environment.

`bincount up` and `bincount down` start and stop it, and so do `make up` and `make down`, which call them.

compose.yaml has the same in containers, on PostgreSQL, for a machine that others rely on; this is for the machine that
one works at, which may have no container engine. The Procfile says what runs, stack.env how, for both the variables.
"""
