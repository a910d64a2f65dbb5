"""What an integration with Skyward can set, for all three of its APIs.
What a flavor does with a setting is in the flavor's module."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from sis_pipeline.providers.oneroster import OneRosterSettings

TOKEN_PATHS = {"sms": "/token", "qmlativ": "/oauth/token"}
"""Where the native APIs keep their token endpoint, under the base URL; OneRoster's can't be derived."""


class SkywardSettings(OneRosterSettings):
    """`base_url`: for oneroster all before `/orgs` (Skyward's has no `/rostering/`); for sms up to and without `/v1`; for
    qmlativ up to and with `…API`."""

    api_flavor: Literal["oneroster", "sms", "qmlativ"] = Field(
        "oneroster", description="which of Skyward's APIs: oneroster (default), sms (SMS 2.0) or qmlativ"
    )
    grant: Literal["client_credentials", "authorization_code", "password"] = Field(  # type: ignore[assignment]
        "client_credentials",
        description="as the API server takes it; older ones of sms want password (key and secret)",
    )
    excluded_schools: tuple[str, ...] = Field(
        (), description="sms: SchoolIds of entities that are no schools (Census), left out with everything in them"
    )
    per_student: tuple[Literal["enrollments", "guardians"], ...] = Field(
        (), description="sms: read these with one call per student, where the server has no list of all"
    )
    object_access: Literal["Generic", "Custom"] = Field(
        "Generic", description="qmlativ: Generic, or Custom for the fields approved in an integration's definition"
    )
    district_code: str | None = Field(None, description="qmlativ: the district's Code, where the system holds several")
    entity_id: str | None = Field(None, description="qmlativ: the entity to read as; the district's where unset")
    withdrawal_statuses: dict[str, Literal["withdrawn", "transferred", "graduated", "no_show"]] = Field(
        default_factory=dict, description="qmlativ: withdrawal code -> what it means, where that is more than withdrawn"
    )

    @model_validator(mode="before")
    @classmethod
    def _flavor_defaults(cls, values: Any) -> Any:
        """The native APIs' token URL follows from the base URL; they want the client's credentials in the form, but the
        password grant beside an Authorization header."""
        if not isinstance(values, dict) or values.get("api_flavor") not in TOKEN_PATHS:
            return values
        flavor = values["api_flavor"]
        by_password = flavor == "sms" and values.get("grant") == "password"
        token_url = f"{str(values.get('base_url', '')).rstrip('/')}{TOKEN_PATHS[flavor]}"
        defaults = {"token_url": token_url, "client_auth": "basic" if by_password else "post"}
        return defaults | {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _password_is_for_sms(self) -> Self:
        if self.grant == "password" and self.api_flavor != "sms":
            raise ValueError("the grant password goes with api_flavor sms only")
        return self
