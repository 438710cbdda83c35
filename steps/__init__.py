"""The entry points of ``MLproject``, one thin file each: parse the parameters, open the run, call carmodel, log the outputs.

Steps import slow libraries inside their functions, so that ``--help`` and a refused parameter answer at once.
"""
