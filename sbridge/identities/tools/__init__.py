"""Helpers of the identities: draws, derivatives, closed forms; nothing here is checked by itself."""
