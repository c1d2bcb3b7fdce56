"""The pack: ``hydra: {searchpath: [pkg://lightning_wd.conf]}`` in an app's primary config makes its groups available.

Hydra imports this package to read it, and so the resolvers of its YAML are there in every process that composes. The
groups are links to ``conf/`` at the repository's root: an ``__init__.py`` there would be everyone's top-level package
``conf`` after an editable install.
"""

from lightning_wd import _hydra as _hydra
