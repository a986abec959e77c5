"""Settings as people write them: strict, and fixed once they are read."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Strict base: a key that is not listed is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
