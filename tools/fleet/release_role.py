"""Whether instances of a release could run a role with what they are told, looked at before any is paid for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from synclib.core.entry import Kind
from synclib.core.names import release_root
from synclib.core.role import ROLE_BYTES_MAX, Role, parse_role
from synclib.errors import Invalid, Missing
from synclib.lazy.dataset import Dataset
from synclib.lazy.open import open_view
from synclib.store.base import Store
from tools.fleet.find_role import Place, check_values, shipped_role
from tools.fleet.release_place import parse_release


class ReleaseRoles:
    """Roles of releases as they stand in a store; each is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[tuple[str, str], Role | None] = {}

    def check(self, role: str, release: str, values: Mapping[str, str]) -> None:
        """Invalid, or Missing, for what ``boxlink up`` of a release (NAME@SEQ) would not take: a role or a release that
        is not there, a value that the role does not have, or lacks. Its own ``roles/`` come first; then the role that
        boxlink brings, which may be another's than the release's: the hint says so."""
        if not release:
            return  # an instance that no launch of ours has tagged
        if (release, role) not in self._read:
            self._read[release, role] = self._role_of(release, role)
        found, is_ours = self._read[release, role], False
        if found is None:
            found, is_ours = shipped_role(role), True
        if found is None:
            raise Missing(f"release {release} has no role {role}", hint=f"publish it with roles/{role}.toml in it")
        try:
            check_values(found, Place(Path("data"), "node", Path("release")), values)
        except Invalid as error:
            if is_ours:
                error.hint += f"; if the release's boxlink has others, publish it with roles/{role}.toml in it"
            raise

    def _role_of(self, release: str, role: str) -> Role | None:
        """None where the release brings none of that name."""
        name, seq = parse_release(release)
        path = f"roles/{role}.toml"
        view = open_view(Dataset(self._store, release_root(name)), seq)
        try:
            entry = view.stat(path.encode())
            where = f"{path} of release {release}"
            if entry.kind != Kind.FILE or entry.size > ROLE_BYTES_MAX:
                raise Invalid("the role is no file, or too large", path=where)
            file = view.open(path.encode())
            try:
                return parse_role(file.pread(0, entry.size), where)
            finally:
                file.close()
        except Missing as error:
            if error.path == path:
                return None
            raise
        finally:
            view.close()
