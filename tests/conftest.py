"""What the tests share."""

# Apps that tests start in processes of their own: not test modules, though doctests are collected from every file.
collect_ignore_glob = ["stranger/*", "ddp_app/*"]
