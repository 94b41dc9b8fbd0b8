"""Reading YAML: one line for whatever is wrong with a file."""

from pathlib import Path
from typing import Any

from saf_jax.errors import UserError


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; {} where it is empty.

    Raises:
      UserError: the file cannot be read, is no YAML, or has a key twice, of which YAML would drop the first without a
        word.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            seen = set()
            for key, _ in node.value:
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise UserError(f"{path}: line {line} has the key {key.value} a second time: put both together")
                # Values of "<<" are merged, which is no repetition.
                if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return {} if tree is None else tree
