"""`client.toml`: a hospital's local knobs, none of which can change the guarantee.

Rules.
- What changes ε or the result is in the signed study; what the hospital allows is in `policy.yaml`.
  Here are only paths, names of columns, and the speed and memory of the machine.
- Relative paths are relative to the folder of `client.toml`.
- The file holds no key. A proxy address may hold a password, so it is never shown in a repr or error.

    >>> load(Path("/srv/wardround")).dataset("icd-titles").unit_column  # doctest: +SKIP
    'patient'
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from wardround_common.config import Address, Log, MonitorSettings, load_toml
from wardround_common.config_text import render_toml
from wardround_common.documents import Document, Line, Name
from wardround_common.errors import ConfigError
from wardround_common.homeformat import require_known_format
from wardround_common.study import Task

FILE_NAME = "client.toml"

_HEADER = """This hospital's machine. Nothing here can change the privacy guarantee: that is in the signed study
and in policy.yaml. Relative paths are relative to this file."""

Proxy = Annotated[str, StringConstraints(pattern=r"^http://[^\s/]+:[0-9]{1,5}/?$", max_length=300)]
"""An HTTP CONNECT proxy. gRPC ignores `https://` proxy addresses silently, so only `http://` is accepted."""


class Dataset(Document):
    """One file of the hospital with texts."""

    path: Annotated[
        Line,
        Field(
            description="The file; its ending says what it is: .csv (with a header line) or .jsonl, both UTF-8, "
            ".parquet, or .ndjson for FHIR.",
            examples=["data/notes.csv"],
        ),
    ]
    unit_column: Annotated[
        Line | None,
        Field(
            description="Column that says which records belong to one patient. Needed for studies whose unit of "
            "privacy is the patient; its values never leave this machine. Unset for FHIR: the resource's subject.",
            examples=["patient_id"],
        ),
    ] = None
    text_column: Annotated[
        Line | None,
        Field(
            description="Column here that holds what the study calls its text_column. Unset: it has the study's name.",
            examples=["note"],
        ),
    ] = None
    label_column: Annotated[
        Line | None,
        Field(
            description="Column here that holds what the study calls its label_column. Unset: it has the study's name.",
            examples=["type|http://loinc.org"],
        ),
    ] = None
    allow_repeated_texts: Annotated[
        bool,
        Field(
            description="true: long texts may occur under several patients, because they come from a template. "
            "Otherwise that is taken for one patient under two identifiers, and no study is approved.",
            examples=[False],
        ),
    ] = False

    def local(self, task: Task) -> Task:
        """Return `task` with the names that its columns have in this file."""
        names = {"text_column": self.text_column, "label_column": self.label_column}
        return task.model_copy(update={key: name for key, name in names.items() if name is not None})


class Model(Document):
    """Where the base model lies on this machine."""

    source: Annotated[
        Line | None,
        Field(
            description="Folder or hub id to take the base model from, instead of the study's own hint. Its digest "
            "must be the study's in any case.",
            examples=["models/minilm"],
        ),
    ] = None
    offline: Annotated[bool, Field(description="true: never ask the model hub, only look on this machine.")] = True


class Runtime(Document):
    """Speed and memory; cannot change ε."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: the first GPU if there is one.")] = (
        "auto"
    )
    dtype: Annotated[
        Literal["float32", "bfloat16"], Field(description="Type of the frozen base model's numbers; norms are float32.")
    ] = "float32"
    micro_batch_tokens: Annotated[
        int,
        Field(
            ge=64,
            le=1 << 22,
            description="Tokens that are on the device at once; less needs less memory. The sum of "
            "a batch is the same.",
        ),
    ] = 2_048
    checkpointing: Annotated[
        bool,
        Field(description="Compute activations again in the backward pass: less memory, about a third more work."),
    ] = False
    threads: Annotated[
        int | None,
        Field(ge=1, le=1024, description="CPU threads for training; unset: as many as torch chooses.", examples=[4]),
    ] = None


class ClientConfig(Document):
    """What `client.toml` holds."""

    site: Annotated[Name, Field(description="This hospital's name, as the operator invited it.")]
    server: Annotated[
        Address, Field(description="host:port of the aggregation server.", examples=["aggregation.example.org:8443"])
    ]
    proxy: Annotated[
        Proxy | None,
        Field(
            description="HTTP proxy for the outbound connection. Unset: a direct connection; the environment's proxy "
            "variables are not looked at.",
            examples=["http://proxy.example.org:3128"],
            repr=False,
        ),
    ] = None
    send_slot_s: Annotated[
        float | None,
        Field(
            gt=0,
            le=86_400,
            description="Answers to a plan leave a whole number of so many seconds after it came, so that how long "
            "training took does not show. Longer than the slowest round, shorter than the study's deadline; "
            "unset: an answer leaves when it is ready.",
            examples=[300.0],
        ),
    ] = None
    datasets: dict[Name, Dataset] = Field(
        default_factory=dict,
        description="The data that studies may name. policy.yaml decides which of them may be used.",
        examples=["notes"],
    )
    model: Annotated[Model, Field(description="The base model on this machine.")] = Model()
    runtime: Annotated[Runtime, Field(description="Speed and memory; cannot change ε or what leaves.")] = Runtime()
    log: Annotated[Log, Field(description="How the client logs; always on stderr.")] = Log()
    monitor: Annotated[MonitorSettings, Field(description="Health and metrics, on this machine only.")] = (
        MonitorSettings()
    )

    def dataset(self, name: str) -> Dataset:
        """Return the data set called `name`.

        Raises:
            ConfigError: client.toml names no such data set.
        """
        try:
            return self.datasets[name]
        except KeyError:
            raise ConfigError(
                "config-unknown-dataset",
                f"{FILE_NAME} has no data set {name}",
                next_step=f"add a section [datasets.{name}] with its path to {FILE_NAME}",
            ) from None


def load(home: Path) -> ClientConfig:
    """Return the configuration in client home `home`, whose files this version knows.

    Raises:
        ConfigError: see `wardround_common.config.load_toml`.
        StorageError: a newer version has used this home.
    """
    require_known_format(home)
    return load_toml(home / FILE_NAME, ClientConfig)


def render(config: ClientConfig) -> str:
    """Return `client.toml` with every key explained."""
    return render_toml(config, header=_HEADER)
