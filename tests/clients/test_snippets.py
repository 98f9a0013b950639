import pytest

from tests.clients.snippets import Snippet, snippets

PAGE = """\
# Page

## First

Words, and `code` among them.

```sh
# no heading
echo one
```

```
one
```

```python
print("two")
```

```
two
```

## Second

```js
console.log(3);
```

```
...
```
"""


def test_snippets_are_read_in_order_with_their_heading_language_and_output():
    assert snippets(PAGE) == [
        Snippet("First 1", "sh", "# no heading\necho one\n", "one\n"),
        Snippet("First 2", "python", 'print("two")\n', "two\n"),
        Snippet("Second 1", "js", "console.log(3);\n", "...\n"),
    ]


@pytest.mark.parametrize(
    "page",
    [
        "```python\n1\n```\n",
        "```python\n1\n```\nwords between\n```\n1\n```\n",
        "```python\n1\n```\n## Next\n```\n1\n```\n",
        "```python\n1\n```\n```python\n2\n```\n",
    ],
)
def test_a_snippet_that_is_not_followed_by_its_output_is_an_error(page):
    with pytest.raises(ValueError, match="no output follows"):
        snippets(page)


@pytest.mark.parametrize("page", ["```\n1\n```\n", "```json\n{}\n```\n", "```toml\n```\n```\n```"])
def test_a_fence_that_belongs_to_no_snippet_is_an_error(page):
    with pytest.raises(ValueError, match="belongs to no snippet"):
        snippets(page)


@pytest.mark.parametrize(
    ("output", "printed", "same"),
    [
        ("one\n", "one", True),
        ("one\n", "one two", False),
        ("one\n", "", False),
        ('{"id": "...", "n": 1}\n', '{"id": "a-9", "n": 1}\n', True),
        ('{"id": "...", "n": 1}\n', '{"id": "a-9", "n": 2}\n', False),
        ("a.c", "abc", False),
        ("first ... last", "first\nand\nlast", False),
        ("first...last", "first\nand\nlast", True),
    ],
)
def test_dots_in_an_output_match_any_text_and_other_characters_themselves(output, printed, same):
    assert Snippet("", "sh", "", output).promises(printed) is same
