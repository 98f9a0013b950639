import asyncio
import json
import os
import signal

import pytest

from app.constraint import compiler
from app.constraint.compiler import Compiler
from app.constraint.kinds import Constraint, JsonSchema, OneOf, Pattern
from app.constraint.limits import ConstraintError, TooLargeError
from app.threads import Pool
from tests.app.constraint.answers import END, allows, tokens_of, toy_trie


@pytest.fixture
async def made():
    pool = Pool("constraints", 1)
    made = Compiler(toy_trie, [END], pool.run)
    yield made
    await made.close()
    pool.close()


async def test_a_constraint_is_compiled_once_and_kept(made):
    red = Constraint(OneOf(("red", "green")))
    first, second = await asyncio.gather(made.compiled(red), made.compiled(red))
    assert first is second is await made.compiled(Constraint(OneOf(("red", "green"))))
    assert allows(first.automaton, tokens_of("red"))
    other = await made.compiled(Constraint(OneOf(("blue",))))
    assert other is not first


async def test_a_fault_comes_with_its_path_each_time(made):
    constraint = Constraint(JsonSchema('{"properties": {"a": {"not": {"multipleOf": 2}}}}'))
    for _ in range(2):
        with pytest.raises(ConstraintError, match="multipleOf is not supported") as refused:
            await made.compiled(constraint)
        assert refused.value.path == "/properties/a/not/multipleOf"


async def test_a_process_that_is_killed_is_replaced(made):
    await made.compiled(Constraint(OneOf(("red",))))
    os.kill(made.quick.pid, signal.SIGKILL)
    await made.quick._process.wait()
    await made.compiled(Constraint(OneOf(("blue",))))


async def test_a_constraint_whose_process_is_killed_is_refused(made):
    await made.compiled(Constraint(OneOf(("red",))))
    request = asyncio.create_task(made.compiled(Constraint(Pattern("(.{0,300}a){0,300}"))))
    await asyncio.sleep(0.05)
    os.kill(made.quick.pid, signal.SIGKILL)
    with pytest.raises(TooLargeError, match="memory"):
        await request
    await made.compiled(Constraint(OneOf(("blue",))))


async def test_a_constraint_that_takes_too_long_is_stopped(made, monkeypatch):
    await made.compiled(Constraint(OneOf(("red",))))
    monkeypatch.setattr(compiler, "MOST_SECONDS", 0.05)
    with pytest.raises(TooLargeError, match=r"longer than 0\.05 s"):
        await made.compiled(Constraint(Pattern("(.{0,300}a){0,300}")))
    assert (made.quick.pid, made.slow.pid) == (None, None)


def expensive(name):
    """Returns a schema whose references double at each step, so that compiling takes seconds."""
    steps = {
        f"{n}": {"properties": {key: {"$ref": f"#/$defs/{n + 1}"} for key in ("a", name)}}
        for n in range(40)
    }
    schema = {"$defs": {**steps, "40": {"type": "string"}}, "$ref": "#/$defs/0"}
    return Constraint(JsonSchema(json.dumps(schema)))


async def test_constraints_do_not_wait_behind_expensive_ones(made):
    slow = [asyncio.create_task(made.compiled(expensive(name))) for name in "bcd"]
    await asyncio.sleep(0)
    for text in ("red", "green", "blue"):
        await made.compiled(Constraint(OneOf((text,))))
    assert [task.done() for task in slow] == [False, False, False]
    for task in slow:
        task.cancel()


async def test_a_constraint_that_is_not_compiled_quickly_is_compiled_all_the_same(
    made, monkeypatch
):
    monkeypatch.setattr(compiler, "QUICK_SECONDS", 0.0)
    red = Constraint(OneOf(("red", "green")))
    assert allows((await made.compiled(red)).automaton, tokens_of("red"))
    assert made.slow.pid is not None


async def test_a_request_that_goes_away_does_not_stop_the_compiling(made):
    constraint = Constraint(OneOf(("red",)))
    request = asyncio.create_task(made.compiled(constraint))
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert allows((await made.compiled(constraint)).automaton, tokens_of("red"))


async def test_the_oldest_results_are_dropped(made, monkeypatch):
    monkeypatch.setattr(compiler, "MOST_KEPT", 2)
    constraints = [Constraint(OneOf((text,))) for text in ("a", "b", "c")]
    first, second, _ = [await made.compiled(each) for each in constraints]
    assert await made.compiled(constraints[1]) is second
    assert await made.compiled(constraints[0]) is not first
