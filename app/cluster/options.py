"""How many replicas a cluster has, and where each of them runs. Ray is not imported here."""

from pydantic import BaseModel, Field, ValidationInfo, field_validator


class ClusterOptions(BaseModel, extra="forbid", frozen=True):
    """The options of `easel cluster` beside those of `easel serve`."""

    replicas: int = Field(default=1, ge=1, description="Number of Easels.")
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of Easels. Ray starts further ones while more than "
        "target_requests are open for each, and ends those that are not needed for ten minutes. If "
        "not set, the number does not change.",
    )
    target_requests: float = Field(
        default=8,
        gt=0,
        description="Open requests for each Easel, running or queued, that max_replicas aims at.",
    )
    gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs for each Easel. If not set, 1, or 0 if the cluster has none or the "
        "device is cpu.",
    )
    affinity: bool = Field(
        default=True,
        description="Whether all turns of a conversation go to the Easel that keeps its prefix.",
    )

    @field_validator("max_replicas")
    @classmethod
    def _not_fewer(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("replicas", 1)
        if value is not None and value < least:
            raise ValueError(f"{value} is less than replicas, which is {least}")
        return value
