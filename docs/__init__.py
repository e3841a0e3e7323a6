"""The site, and beside it the scripts that measure what its pages print."""
