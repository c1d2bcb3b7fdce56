"""The folder of a run: where it is, its ``config.yaml`` without secrets, and a CSV logger that appends on resume."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter

from lightning_wd.errors import ConfigError, explain

__all__ = ["RunCSVLogger", "redact", "refuse_secrets", "run_dir", "save_config"]

REDACTED = "<redacted>"
# The last words of a name; `accessKey` and `access-key` count as `access_key`, and `eos_token` and its like are
# vocabulary. A key alone is no secret, as in `sort_key`: whose it is says so.
_WHOSE = "api|access|secret|private|ssh|signing|encryption|client|service|license|openai|anthropic|wandb|comet|neptune"
_WHOSE += "|hf|huggingface|github|gitlab|aws|azure|google"
_SECRET_NAME = re.compile(
    rf"(^|_)(({_WHOSE})_?keys?|secrets?|(auth_?)?token|passw(or)?ds?|pwd|passphrases?|credentials?|auth(orization)?|bearer)$"
    r"|^key$",
    re.I,
)
# What may stand under such a name: a variable without a default, and the word that a header has before it.
_READS = re.compile(r"""\$\{oc\.env:\s*['"]?\w+['"]?\s*(,\s*(null|''|"")?\s*)?\}|\b(bearer|basic|token)\b""", re.I)
_VOCABULARY = re.compile(r"(^|_)(pad|eos|bos|unk|mask|sep|cls|start|end|special|next|per|num|max|min|n)_token$", re.I)
_LONGEST_COUNT = 7  # digits: a longer number under such a name is no count
_SHORTEST_SECRET = 6  # shorter values would redact ordinary words
_SHORTEST_REFUSED = 8  # nor may a short one stop a run


def run_dir() -> Path:
    """Return Hydra's output folder of the current job, or the working directory without Hydra."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir) if HydraConfig.initialized() else Path.cwd()


def redact(config: Any) -> Any:
    """Return a config as plain containers, resolved, without secrets.

    Left unresolved: what reads the environment (``${oc.env:NAME}``). Replaced by ``<redacted>``: values under a name
    such as ``api_key``, ``token`` or ``password``, the default of a variable there too, and any text that holds the
    value of an environment variable with such a name, or of one that the config reads.

    Args:
        config: a DictConfig, or plain containers.

    >>> redact({"lr": 0.1, "wandb": {"api_key": "abcdef123"}})
    {'lr': 0.1, 'wandb': {'api_key': '<redacted>'}}
    """
    from omegaconf import OmegaConf

    raw = OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config
    resolved = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    names = set(_secret_variables())
    names |= set(variables_read(raw))
    secrets = sorted((os.environ[n] for n in names if len(os.environ.get(n, "")) >= _SHORTEST_SECRET), key=len)
    return _redact(raw, resolved, secrets[::-1], secret=False)


def variables_read(config: Any) -> list[str]:
    """Return the names of the environment's variables that an unresolved config reads.

    >>> variables_read({"root": "${oc.env:DATA}/mnist"})
    ['DATA']
    """
    return re.findall(r"\$\{oc\.env:\s*['\"]?([A-Za-z_]\w*)", str(config))


def _secret_variables() -> list[str]:
    return [name for name in os.environ if names_secret(name) and name != "PWD"]  # the shell's working directory


def names_secret(path: str) -> bool:
    """Whether the last part of a dotted name is that of a secret."""
    leaf = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", path.rpartition(".")[2].lstrip("+"))
    return bool(_SECRET_NAME.search(leaf)) and not _VOCABULARY.search(leaf)


def _could_be_secret(value: object) -> bool:
    if value is None or isinstance(value, (bool, float)):
        return False
    return not str(value).isdigit() or len(str(value)) > _LONGEST_COUNT


def _only_reads(text: str) -> bool:
    """Whether a text reads variables of the environment and has nothing of its own beside them."""
    return "${oc.env:" in text and not re.search(r"\w", _READS.sub("", text))


def _redact(raw: Any, value: Any, secrets: list[str], *, secret: bool) -> Any:
    if isinstance(value, dict):
        below = raw if isinstance(raw, dict) else value
        return {
            key: _redact(below.get(key, item), item, secrets, secret=secret or names_secret(str(key)))
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = raw if isinstance(raw, (list, tuple)) else value
        return [_redact(r, v, secrets, secret=secret) for r, v in zip(items, value, strict=True)]
    reads = isinstance(raw, str) and "${oc.env:" in raw
    if secret and (not _only_reads(raw) if reads else _could_be_secret(value)):
        return REDACTED
    value = raw if reads else value
    if isinstance(value, str):
        for text in secrets:
            value = value.replace(text, REDACTED)
    return value


def refuse_secrets(overrides: Any) -> None:
    """Refuse a secret on the command line, at any depth of a value.

    A secret is a value under such a name, and the value of an environment variable with such a name wherever it stands
    (the shell puts ``$HF_TOKEN`` into a URL). It would stay in the shell's history, in the metadata of every logger,
    and in what Hydra writes about a job and a sweep; so this is called before Hydra writes: in ``on_run_start`` and
    ``on_multirun_start`` of a Hydra callback.

    Args:
        overrides: ``key=value`` each: a list, or ``hydra.overrides.task`` or ``.hydra`` of Hydra's config.

    Raises:
        ConfigError: names the key, never the value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    if OmegaConf.is_config(overrides):  # a plain look would resolve `${oc.env:...}`
        overrides = OmegaConf.to_container(overrides, resolve=False)
    values = {name: os.environ[name] for name in _secret_variables() if len(os.environ[name]) >= _SHORTEST_REFUSED}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        line = str(override.input_line)
        if key := _secret_within(line.partition("=")[0], override.value()):
            raise ConfigError(
                explain(
                    f"{key} is a secret, and a command line is no place for one.",
                    found="a value in an override",
                    fix=f"export it as an environment variable and write '{key}=${{oc.env:NAME}}'; "
                    "wandb reads WANDB_API_KEY by itself",
                )
            )
        if name := next((name for name, value in values.items() if value in line), None):
            raise ConfigError(
                explain(
                    f"{line.partition('=')[0]} holds a secret, and a command line is no place for one.",
                    found=f"the value of the environment variable {name}",
                    fix=f"write ${{oc.env:{name}}} in its place, in single quotes, so that the config reads it",
                )
            )


def _secret_within(path: str, value: Any, *, secret: bool = False) -> str | None:
    """Return the dotted name of the first secret in an override's value."""
    secret = secret or names_secret(path)
    value = getattr(value, "list", getattr(value, "text", value))  # of Hydra's own types: a choice, a quoted text
    below: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        below = [(f"{path}.{getattr(key, 'text', key)}", item) for key, item in value.items()]
    elif isinstance(value, list):
        below = [(path, item) for item in value]
    elif secret and value != "" and not _only_reads(str(value)) and _could_be_secret(value):
        return path
    return next(filter(None, (_secret_within(*item, secret=secret) for item in below)), None)


@rank_zero_only
def save_config(config: Any, folder: Path) -> None:
    """Write ``config.yaml``, resolved and redacted, into the run's folder (rank zero only)."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(redact(config), sort_keys=False), encoding="utf-8")


class _AppendingWriter(ExperimentWriter):
    """Continue the ``metrics.csv`` of an interrupted run, where Lightning's writer deletes it."""

    def _check_log_dir_exists(self) -> None:
        if self._fs.isfile(self.metrics_file_path):
            with self._fs.open(self.metrics_file_path, "r", newline="") as file:
                self.metrics_keys = file.readline().strip().split(",")

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        # into a second file first: a crash while rewriting must not cost the rows that were written
        whole, self.metrics_file_path = self.metrics_file_path, f"{self.metrics_file_path}.new"
        try:
            self._fs.copy(whole, self.metrics_file_path)
            super()._rewrite_with_new_header(fieldnames)
            self._fs.mv(self.metrics_file_path, whole)
        finally:
            self.metrics_file_path = whole


class RunCSVLogger(CSVLogger):
    """Lightning's CSVLogger, writing ``metrics.csv`` straight into one folder and appending to it on resume.

    Args:
        save_dir: the folder; None for the run's (Hydra's output folder, or the working directory).
        prefix: text before every metric's name.
        flush_logs_every_n_steps: rows kept in memory between writes.
    """

    def __init__(
        self, save_dir: str | Path | None = None, prefix: str = "", flush_logs_every_n_steps: int = 100
    ) -> None:
        folder = run_dir() if save_dir is None else Path(save_dir)
        super().__init__(folder, "", "", prefix, flush_logs_every_n_steps)

    @property
    def experiment(self) -> Any:
        """The writer (on rank zero; elsewhere Lightning's stand-in that ignores every call)."""
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return super().experiment
        if self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows from a step on: a run that was killed has logged them after the checkpoint it now goes on from.

        Args:
            step: the optimizer steps of the checkpoint.
        """
        path = Path(self.log_dir, "metrics.csv")
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:  # a line without its end is one that the kill has cut
            reader = csv.DictReader(line for line in file if line.endswith("\n"))
            rows = [row for row in reader if int(row["step"]) < step]
        whole = path.with_name("metrics.csv.new")
        with whole.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, reader.fieldnames or ["step"])
            writer.writeheader()
            writer.writerows(rows)
        whole.replace(path)
