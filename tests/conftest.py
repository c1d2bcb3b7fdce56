"""What the tests share."""

from hypothesis import settings

# The same examples in every run, so that a red run means a change; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

# Apps that tests start in processes of their own: not test modules, though doctests are collected from every file.
collect_ignore_glob = ["stranger/*", "ddp_app/*"]
