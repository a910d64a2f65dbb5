"""One module per vendor API, each speaking to the letter of what is known of it, quirks included.
Dialects only put a system's view into the vendor's words; what the system holds comes from `views`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sis_pipeline.sandbox.dialects.api import Api
    from sis_pipeline.sandbox.systems import System


def api_of(system: System) -> type[Api]:
    """The API class that speaks a system's dialect."""
    from sis_pipeline.sandbox.dialects.infinite_campus import InfiniteCampusApi
    from sis_pipeline.sandbox.dialects.oneroster import OneRosterApi
    from sis_pipeline.sandbox.dialects.powerschool import PowerSchoolApi
    from sis_pipeline.sandbox.dialects.skyward_oneroster import SkywardOneRosterApi
    from sis_pipeline.sandbox.dialects.skyward_qmlativ import QmlativApi
    from sis_pipeline.sandbox.dialects.skyward_sms import SmsApi

    return {
        "powerschool": PowerSchoolApi,
        "infinite_campus": InfiniteCampusApi,
        "oneroster_1.1": OneRosterApi,
        "oneroster_1.2": OneRosterApi,
        "skyward_oneroster": SkywardOneRosterApi,
        "skyward_sms": SmsApi,
        "skyward_qmlativ": QmlativApi,
    }[system.dialect]
