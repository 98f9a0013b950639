"""Formats of strings as patterns. They are strict: what they match is valid by every validator."""

_DAY_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_LONG_MONTH = r"(0[13578]|1[02])-(0[1-9]|[12]\d|3[01])"
_MONTH = r"(0[469]|11)-(0[1-9]|[12]\d|30)"
# 0000 is no year in Python.
_DATE = (
    rf"(([1-9]\d{{3}}|0[1-9]\d\d|00[1-9]\d|000[1-9])-({_LONG_MONTH}|{_MONTH}|02-(0[1-9]|1\d|2[0-8]))"
    rf"|(\d\d(0[48]|[2468][048]|[13579][26])|([13579][26]|[2468][048]|0[48])00)-02-29)"
)
# Validators limit a host's name to 253 characters, what is in front of @ to 64, and where a label
# has two hyphens.
_LABEL = r"[A-Za-z0-9](-?[A-Za-z0-9]){0,15}"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,6}}"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"({_BYTE}\.){{3}}{_BYTE}"
_GROUP = r"[0-9A-Fa-f]{1,4}"
_IPV6 = (
    rf"(({_GROUP}:){{7}}{_GROUP}|"
    + "|".join(
        rf"({_GROUP}:){{{before - 1}}}{_GROUP}::(({_GROUP}:){{0,{6 - before}}}{_GROUP})?"
        if before < 7
        else rf"({_GROUP}:){{6}}{_GROUP}::"
        for before in range(1, 8)
    )
    + rf"|::(({_GROUP}:){{0,6}}{_GROUP})?)"
)
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_EMAIL = rf"{_ATOM}(\.?{_ATOM}){{0,31}}@{_LABEL}(\.{_LABEL}){{1,3}}"
_URI_CHARACTER = r"([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})"
_AUTHORITY = r"//([A-Za-z0-9._~-]+@)?([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:\d{1,4})?"
_SEGMENT = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_PATH = rf"(/{_SEGMENT}*)*"
_TAIL = rf"(\?({_URI_CHARACTER}|\?)*)?(#({_URI_CHARACTER}|\?)*)?"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*:({_AUTHORITY}{_PATH}|/?{_SEGMENT}+{_PATH}){_TAIL}"
_URI_REFERENCE = rf"({_URI}|{_PATH}{_TAIL}|[A-Za-z0-9._~-]+{_PATH}{_TAIL})"
_POINTER = r"(/([^~/]|~[01])*)*"
_DURATION_TIME = r"T(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S)"
_DURATION_DAY = r"(\d+Y(\d+M(\d+D)?)?|\d+M(\d+D)?|\d+D)"

PATTERNS = {
    "date-time": rf"{_DATE}[T]{_DAY_TIME}",
    "date": _DATE,
    "time": _DAY_TIME,
    "duration": rf"P({_DURATION_DAY}({_DURATION_TIME})?|{_DURATION_TIME}|\d+W)",
    "email": _EMAIL,
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "uri": _URI,
    "uri-reference": _URI_REFERENCE,
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(0|[1-9]\d{{0,8}})(#|{_POINTER})",
    # Of these, what is ASCII is written.
    "idn-email": _EMAIL,
    "iri": _URI,
    "iri-reference": _URI_REFERENCE,
}
# Validators check these, and no pattern here describes them.
UNSUPPORTED = frozenset({"idn-hostname", "uri-template", "regex"})
