"""Every private or version-bound name of other libraries that the package uses, one module for each library.

Each name has a test in ``tests/test_compat.py`` or ``tests/test_compat_jax.py`` that pins what the package relies on,
so that a new version which moves one fails there, by its name.
"""
