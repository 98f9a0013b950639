"""Random JSON schemas, of the keywords that automata know and of some that they do not."""

from hypothesis import strategies as st

_NAMES = st.sampled_from(["a", "b", "name", "ab c", 'q"', "é", "a/b", "x~y"])
_TEXTS = st.text(alphabet='ab"\\\n/é🙂 ', max_size=4)
_INTEGERS = st.integers(-1200, 1200)
_NUMBERS = st.one_of(_INTEGERS, st.sampled_from([0.5, -2.25, 99.99, 1e-3, 12.0]))
_PATTERNS = st.sampled_from(
    [
        "^a",
        "b$",
        "^[a-c]{2,5}$",
        "a|b",
        "^\\d+$",
        "^(ab|é)*$",
        "\\s",
        "^[^a]*$",
        "^.{3}$",
        '"',
        "\\\\",
    ]
)
_FORMATS = st.sampled_from(
    ["date", "date-time", "time", "uuid", "ipv4", "ipv6", "email", "uri", "hostname", "int32"]
)
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)


def schemas() -> st.SearchStrategy:
    """Returns schemas with up to a few levels."""
    root = st.recursive(_leaves(), _branches, max_leaves=6)
    with_definitions = st.builds(
        lambda own, schema: {"$defs": {"own": own}, **schema}, _recursive(), _dicts(root)
    )
    return st.one_of(root, with_definitions)


def _dicts(schemas: st.SearchStrategy) -> st.SearchStrategy:
    return schemas.map(lambda schema: schema if isinstance(schema, dict) else {"allOf": [schema]})


def _recursive() -> st.SearchStrategy:
    tree = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/$defs/own"}},
    }
    nested = {"type": "array", "items": {"$ref": "#/$defs/own"}, "maxItems": 2}
    return st.sampled_from([tree, {**tree, "required": ["a"]}, nested, {"type": "string"}])


def _leaves() -> st.SearchStrategy:
    small = st.integers(0, 6)
    return st.one_of(
        st.just(True),
        st.just({}),
        st.just(False),
        st.fixed_dictionaries({"const": _SCALARS}),
        st.fixed_dictionaries({"enum": st.lists(_SCALARS, min_size=1, max_size=4)}),
        st.fixed_dictionaries(
            {"type": st.sampled_from(["integer", "number", ["integer", "null"]])},
            optional={
                "minimum": _NUMBERS,
                "maximum": _NUMBERS,
                "exclusiveMinimum": _NUMBERS,
                "exclusiveMaximum": _NUMBERS,
                "multipleOf": st.sampled_from([1, 2, 7, 10]),
            },
        ),
        st.fixed_dictionaries(
            {"type": st.sampled_from(["string", ["string", "boolean"]])},
            optional={
                "minLength": small,
                "maxLength": st.sampled_from([0, 1, 3, 9, 70, 500]),
                "pattern": _PATTERNS,
                "format": _FORMATS,
                "enum": st.lists(_SCALARS, min_size=1, max_size=4),
            },
        ),
        st.fixed_dictionaries({"type": st.sampled_from(["null", "boolean", "object", "array"])}),
        st.just({"type": "object", "additionalProperties": False}),
    )


def _branches(inner: st.SearchStrategy) -> st.SearchStrategy:
    several = st.lists(inner, min_size=1, max_size=3)
    objects = st.fixed_dictionaries(
        {"type": st.just("object")},
        optional={
            "properties": st.dictionaries(_NAMES, inner, max_size=4),
            "required": st.lists(_NAMES, max_size=3, unique=True),
            "additionalProperties": inner,
            "patternProperties": st.dictionaries(_PATTERNS, inner, max_size=2),
            "minProperties": st.integers(0, 3),
            "maxProperties": st.integers(0, 4),
            "unevaluatedProperties": inner,
            "propertyNames": inner | st.fixed_dictionaries({"pattern": _PATTERNS}),
            "dependentRequired": st.dictionaries(
                _NAMES, st.lists(_NAMES, max_size=2, unique=True), max_size=2
            ),
            "dependentSchemas": st.dictionaries(_NAMES, inner, max_size=2),
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": several,
            "minItems": st.integers(0, 3),
            "maxItems": st.integers(0, 4),
            "uniqueItems": st.booleans(),
            "contains": inner,
        },
    )
    scalars = st.lists(_SCALARS, min_size=1, max_size=8)
    unique = st.builds(
        lambda values, least: {
            "type": "array",
            "items": {"enum": values},
            "uniqueItems": True,
            "minItems": least,
        },
        scalars,
        st.integers(0, 2),
    )
    combined = st.builds(
        lambda base, keyword, parts: {**(base if isinstance(base, dict) else {}), keyword: parts},
        inner,
        st.sampled_from(["anyOf", "oneOf", "allOf"]),
        several,
    )
    reference = st.just({"$ref": "#/$defs/own"})
    conditions = st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner})
    negations = st.fixed_dictionaries({"not": inner})
    # What is forbidden, or a condition, is mostly about the members of an object.
    about_members = st.fixed_dictionaries(
        {},
        optional={
            "required": st.lists(_NAMES, max_size=2),
            "properties": st.dictionaries(_NAMES, inner, max_size=2),
        },
    )
    limited = st.builds(
        lambda base, about, limit: {**base, **limit, **about},
        objects,
        st.one_of(
            st.fixed_dictionaries({"not": about_members}),
            st.fixed_dictionaries(
                {"if": about_members, "then": about_members, "else": about_members}
            ),
            st.fixed_dictionaries({"oneOf": st.lists(about_members, min_size=1, max_size=3)}),
        ),
        st.sampled_from([{}, {"additionalProperties": False}]),
    )
    return st.one_of(
        objects,
        objects,
        arrays,
        unique,
        combined,
        reference,
        conditions,
        negations,
        limited,
        limited,
    )
