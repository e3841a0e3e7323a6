"""The public names of the package by kind, for the reference."""

import inspect


def groups():
    """Headings of the reference, each with the public names below it: from the list of the package root alone."""
    import sbridge
    from sbridge.laws import Law
    from sbridge.processes import Process
    from sbridge.solvers.base import Method

    found = {"Functions": [], "Solvers": [], "Processes": [], "Distributions": [], "Other classes": [], "Rooms": []}
    for name in sbridge.HOMES:
        thing = getattr(sbridge, name)
        kinds = {"Solvers": Method, "Processes": Process, "Distributions": Law}
        if inspect.ismodule(thing):
            found["Rooms"].append(name)
        elif inspect.isclass(thing):
            found[next((k for k, base in kinds.items() if issubclass(thing, base)), "Other classes")].append(name)
        else:
            found["Functions"].append(name)
    return found
