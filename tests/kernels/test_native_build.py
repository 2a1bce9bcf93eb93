"""Building, caching and choosing the native library, and saying why when it cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shoal.kernels import native
from shoal.kernels.native import __main__ as command
from shoal.kernels.native import build as building
from shoal.kernels.native import instruction_set
from tests.kernels.native_libraries import LIBRARIES

needs_compiler = pytest.mark.skipif(building.find_compiler() is None, reason="no C++ compiler here")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def fresh_attempt() -> Iterator[None]:
    """The module tries anew in this test, and in the next one too."""
    native._attempt.cache_clear()
    yield
    native._attempt.cache_clear()


@pytest.mark.usefixtures("no_compiler", "empty_cache", "fresh_attempt")
def test_without_a_compiler_it_is_unavailable_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """PATH without g++ and an empty cache: False and a sentence; only calling an operation raises."""
    assert native.available() is False
    assert str(native.reason()).startswith("no C++ compiler")
    with pytest.raises(native.NativeUnavailableError, match=r"no C\+\+ compiler"):
        native.isa()

    assert command.main() == 1
    assert "no C++ compiler" in capsys.readouterr().err


@needs_compiler
def test_a_compiler_that_fails_shows_its_words(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason quotes the command line; nothing half-written stays behind."""
    monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-no-such-flag-exists"))
    with pytest.raises(native.NativeUnavailableError, match="no-such-flag-exists"):
        building.build_unit("probe")
    assert [path.name for path in empty_cache.rglob("*") if path.suffix in (".so", ".partial")] == []


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(("compiler", "message"), [("/no/such/g++", "no C\\+\\+ compiler"), ("false", "does not run")])
def test_a_compiler_named_wrongly_is_named_in_the_reason(
    compiler: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$CXX wins over PATH, also when it is wrong."""
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(native.NativeUnavailableError, match=message):
        building.build_unit("probe")


@needs_compiler
def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the cache should be."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(native.NativeUnavailableError, match="XDG_CACHE_HOME"):
        building.build_unit("probe")


@needs_compiler
def test_builders_at_once_compile_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock lets one compile; the others find its library."""
    compiled: list[str] = []
    compile_once = building._compile

    def counting(compiler: list[str], unit: str, library: Path) -> None:
        compiled.append(unit)
        compile_once(compiler, unit, library)

    monkeypatch.setattr(building, "_compile", counting)
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(building.build_unit, ["probe"] * 4))

    assert compiled == ["probe"]
    assert [path.name for path in paths] == ["probe.so"]
    assert all(empty_cache in path.parents for path in paths)


@needs_compiler
def test_a_library_in_the_cache_serves_where_no_compiler_is(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """An image may carry the library of another stage's compiler, as long as the sources are the same."""
    built = building.build_unit("probe")
    request.getfixturevalue("no_compiler")
    assert built == building.build_unit("probe")
    assert empty_cache in built.parents

    monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, "-g"))
    with pytest.raises(native.NativeUnavailableError):
        building.build_unit("probe")


@needs_compiler
def test_the_environment_names_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any that the machine has; another, or a word that is none, is refused with the choice there is."""
    monkeypatch.setenv(instruction_set.ENVIRONMENT_KEY, "portable")
    assert instruction_set.choose() == "portable"

    monkeypatch.delenv(instruction_set.ENVIRONMENT_KEY)
    assert instruction_set.choose() == instruction_set.supported()[-1]

    monkeypatch.setenv(instruction_set.ENVIRONMENT_KEY, "mmx")
    with pytest.raises(native.NativeUnavailableError, match=r"SHOAL_NATIVE_ISA=mmx.*portable"):
        instruction_set.choose()


@needs_compiler
@pytest.mark.usefixtures("fresh_attempt")
def test_an_unknown_instruction_set_makes_the_module_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through the module: False and the reason."""
    monkeypatch.setenv(instruction_set.ENVIRONMENT_KEY, "mmx")
    assert native.available() is False
    assert "SHOAL_NATIVE_ISA=mmx" in str(native.reason())


@needs_compiler
def test_the_module_serves_the_best_library() -> None:
    """Its functions are those of the library for the best instruction set, unless the environment says otherwise."""
    assert native.available()
    assert native.reason() is None
    assert native.isa() == instruction_set.choose()
    assert native.library_path().exists()
    assert native.fused() == native.library().fused


@needs_compiler
def test_the_command_prints_library_and_speeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m shoal.kernels.native`, here with a matrix of no size."""
    for name in ("ROWS", "WIDTH"):
        monkeypatch.setattr(command, name, 64)

    assert command.main() == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in (native.isa(), str(native.library_path()), "GB/s", "GFLOP/s"))


@pytest.mark.skipif(not LIBRARIES, reason="no C++ compiler here")
def test_every_source_is_compiled_into_the_kernels() -> None:
    """No .cpp beside them is forgotten."""
    sources = {path.name for path in building.SOURCE_DIR.glob("*.cpp")}
    assert sources == {*building.KERNEL_SOURCES, "probe.cpp"}
