"""First boot: from user-data to the running role, with the standard library alone.

These modules are packed into one zipapp (:mod:`.build`) that an image brings or cloud-init fetches; so they import
nothing but Python 3.11's own and each other, and what is not needed at once only where it is.
"""
