"""Evaluation of bridges on held-out samples: distances with errors, floors and baselines; path measures.

:func:`evaluate` judges both ends, :func:`score_at` a prediction at a time in between. Both return a :class:`Report`.
:func:`certify` bounds how far a bridge is from the best one.
"""

from sbridge._names import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
