"""The fields that switch thinking on and off, under the names that clients use for other servers.

The model knows only on and off. Every word for an effort therefore means one of both.
"""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from app.dialects.fields import Fields, JsonObject, RequestFields, unsupported

_NO_EFFORT = ("none", "minimal", "off", "disable", "disabled")
Effort = Literal[
    "none",
    "minimal",
    "off",
    "disable",
    "disabled",
    "auto",
    "default",
    "on",
    "enable",
    "enabled",
    "low",
    "medium",
    "high",
    "xhigh",
    "max",
]
_SWITCH = "enable_thinking"  # the template's variable, which is set by these fields alone
# Variables of a template that have fields of their own in a request.
_OWN_FIELDS = ("messages", "tools", "documents", "add_generation_prompt")


def thinks(effort: str | None) -> bool | None:
    """Returns whether this effort switches thinking on, or None if it leaves that open."""
    return None if effort in (None, "auto", "default") else effort not in _NO_EFFORT


class Thinking(Fields):
    """DeepSeek's and Anthropic's form."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]


class Reasoning(Fields):
    """OpenRouter's form. With `exclude` the model thinks, but its thoughts are not sent."""

    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class ThinkingFields(RequestFields):
    """The switch in all of its forms. Raises an error if two of them contradict each other."""

    chat_template_kwargs: JsonObject | None = Field(
        default=None, description="Variables of the chat template; enable_thinking is the switch"
    )
    enable_thinking: bool | None = None
    think: bool | Effort | None = None
    thinking: Thinking | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _no_own_fields(cls, value: JsonObject | None) -> JsonObject | None:
        for name in _OWN_FIELDS:
            if name in (value or {}):
                raise ValueError(f"the variable {name!r} cannot be set here")
        return value

    @model_validator(mode="after")
    def _agree(self) -> "ThinkingFields":
        wishes = self._wishes()
        first = next(iter(wishes), None)
        for field, wish in wishes.items():
            if first is not None and wish != wishes[first]:
                raise unsupported(field, f"it contradicts {first}")
        return self

    @property
    def thinks(self) -> bool:
        return next(iter(self._wishes().values()), False)

    @property
    def shows_thoughts(self) -> bool:
        excluded = self.reasoning is not None and self.reasoning.exclude
        return self.include_reasoning is not False and not excluded

    @property
    def template_options(self) -> JsonObject:
        """Returns the further variables of the chat template."""
        options = self.chat_template_kwargs or {}
        return {name: value for name, value in options.items() if name != _SWITCH}

    def _wishes(self) -> dict[str, bool]:
        """Returns the fields that switch thinking on or off, with what they say."""
        switch = (self.chat_template_kwargs or {}).get(_SWITCH)
        if not isinstance(switch, bool | None):
            raise unsupported("chat_template_kwargs", f"{_SWITCH} should be true or false")
        reasoning = self.reasoning or Reasoning()
        kind = None if self.thinking is None else self.thinking.type
        wishes = {
            "chat_template_kwargs": switch,
            "enable_thinking": self.enable_thinking,
            "think": thinks(self.think) if isinstance(self.think, str) else self.think,
            "thinking": None if kind in (None, "auto") else kind != "disabled",
            "reasoning": thinks(reasoning.effort)
            if reasoning.enabled is None
            else reasoning.enabled,
            "reasoning_effort": thinks(self.reasoning_effort),
        }
        return {field: wish for field, wish in wishes.items() if wish is not None}
