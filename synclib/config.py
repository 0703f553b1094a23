"""Settings: plain data, never a component. Read from flags, ``BOXLINK_*`` and ``boxlink.toml`` by ``tools``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class S3Settings(BaseModel):
    """How an S3 store is reached; credentials come from boto3's chain."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None


class GcSettings(BaseModel):
    """Which seqs are kept; with nothing set, all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_last: int | None = Field(default=None, ge=0)
    keep_daily: int | None = Field(default=None, ge=0)
    keep_weekly: int | None = Field(default=None, ge=0)
    keep_monthly: int | None = Field(default=None, ge=0)


class VolumeSettings(BaseModel):
    """Whose block volumes this machine has; with nothing set, those of the store's kind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: Literal["ebs", "local"] | None = None
    pool: str | None = None  # where the local driver keeps its images


class Settings(BaseModel):
    """``boxlink.toml``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str | None = None
    node: str | None = None
    poll_s: float = Field(default=10, gt=0, le=3600)
    allow: list[str] = []
    s3: S3Settings = S3Settings()
    gc: GcSettings = GcSettings()
    volume: VolumeSettings = VolumeSettings()
