"""The trail as the configuration wants it."""

from __future__ import annotations

import time
from pathlib import Path

from shoal.router.audit.config import AuditConfig
from shoal.router.audit.file import AuditFile, AuditFileError
from shoal.router.audit.log import AuditLog
from shoal.router.audit.trail import Sealer, Trail
from shoal.router.errors import StartError


def build_trail(config: AuditConfig, router_id: str) -> Trail | None:
    """None without a directory. Raises StartError naming the setting."""
    if not config.directory:
        return None
    key = secret_of("audit.key_file", config.key_file) if config.key_file else b""
    sealer = None
    if config.encryption_key_file:
        sealer = Sealer(sealing_key("audit.encryption_key_file", config.encryption_key_file))
    try:
        file = AuditFile(Path(config.directory) / f"{router_id}.jsonl", key)
    except AuditFileError as error:
        raise StartError(f"audit.directory: {error}") from error
    return Trail(AuditLog(file, refuse=config.on_failure == "refuse"), router_id, sealer, time.time)


def sealing_key(name: str, path: str) -> bytes:
    """32 bytes in a file, no more: of a longer one, such as digits for 32 bytes, only a part would count. Raises
    StartError."""
    secret = secret_of(name, path)
    if len(secret) != 32:
        raise StartError(f"{name}: {path} must hold 32 bytes, not {len(secret)}")
    return secret


def secret_of(name: str, path: str) -> bytes:
    """The bytes in a file, a newline at its end aside. Raises StartError when they are too few."""
    try:
        secret = Path(path).read_bytes().rstrip(b"\r\n")
    except OSError as error:
        raise StartError(f"{name}: {path}: {error.strerror}") from error
    if len(secret) < 32:
        raise StartError(f"{name}: {path} must hold at least 32 bytes, not {len(secret)}")
    return secret
