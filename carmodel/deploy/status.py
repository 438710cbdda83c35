"""The status of a deployment, and the error of one that failed."""

from dataclasses import dataclass, field

from carmodel.errors import InputError


@dataclass(frozen=True)
class Status:
    """The status of a deployment.

    Attributes:
        state: the state as the service names it, such as Succeeded or running.
        url: where clients post photos. Empty if there is none yet.
        headers: what a request needs, including the key. Never printed and never logged.
        rows_key: the key of a request's JSON that holds the rows. Azure ML's server of MLflow models takes ``input_data``,
            MLflow's own server ``dataframe_split``.
        detail: one line for people, such as the version that it serves.
        undo: the last line of an error, with the command that restores the previous version. Empty if there was none.
    """

    state: str
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # without repr, because it holds a key
    rows_key: str = "dataframe_split"
    detail: str = ""
    undo: str = ""


class DeployError(InputError):
    """A failed deployment: the message of the service, the present status, and the next commands."""
