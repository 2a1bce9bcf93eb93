"""What one worker needs to know before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.wire.tls import TlsConfig
from shoal.workers.errors import ConfigError


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of one worker. Complete after construction; a wrong value raises ConfigError naming its key.

    Sizes are tokens unless the name says otherwise; times are seconds.
    """

    model: str
    """Checkpoint directory."""
    worker_id: str = "worker-0"
    group: str = "g0"
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:N"."""
    host: str = "127.0.0.1"
    """Address the gRPC stream listens on."""
    port: int = 0
    """0 takes a free port."""
    first_port: int = 0
    """The first free port from here on is taken, where `port` says nothing; 0: any free one."""
    metrics_host: str = "127.0.0.1"
    """Address that /metrics is served on."""
    metrics_port: int = -1
    """The first free port from here on serves /metrics; 0: any free one, -1: none."""
    threads: int = 1
    """CPU threads of this worker's kernels."""
    max_batch_size: int = 32
    """Most sequences running at once."""
    max_batch_tokens: int = 512
    """Most tokens computed in one step, prompts and decodes together."""
    preferred_step_sizes: tuple[int, ...] = ()
    """Numbers of tokens per step that the device runs best, ascending. Guesses fill a step up to the next one and never
    go past it; empty: no size is better than another."""
    max_waiting: int = 256
    """Most sequences waiting; more are refused as overloaded."""
    max_context: int = 0
    """Most tokens of one sequence, prompt and output; 0 takes what the model and the KV cache allow."""
    block_size: int = 16
    """Tokens per KV block."""
    kv_tokens: int = 65536
    """Tokens that the full-attention layers' KV cache holds, where `kv_memory` says nothing."""
    kv_memory: int = 0
    """Bytes for the KV cache of all layers; 0: as `kv_tokens` demands."""
    prefix_cache: bool = True
    """Keep the KV of finished sequences and find common prefixes in it."""
    speculative_tokens: int = 0
    """Most tokens guessed ahead per sequence and verified in one step; the output is the same. 0: none."""
    int8_activations: bool = False
    """Round activations to 8 bits where they meet the experts' weights: faster on a CPU, less exact, and another
    numerics id."""
    sampler: str = "auto"
    """Where tokens are chosen: "host", "device", or "auto": the device on a GPU. Penalties and biases are the host's
    everywhere. Both keep to the same seeds; rounding differs, so each is a numerics id of its own."""
    overlap: bool = True
    """Launch a step before the host knows the last one's tokens, where the device samples, the worker is alone in its
    group and `speculative_tokens` is 0. The output is the same."""
    graphs: str = "auto"
    """Record a decode step once per batch size and replay it: "auto" on a GPU, "on" everywhere (on a CPU it saves
    nothing), "off" nowhere. The output is the same."""
    graph_memory: int = 2 << 30
    """Bytes that recordings may take; steps that find no room are launched piece by piece."""
    collective_timeout: float = 5.0
    """Deadline of every exchange between ranks. A rank that died is noticed at once, one that hangs by its heartbeat;
    this is for what neither shows."""
    expert_spare_slots: int = 0
    """Slots per layer kept free for experts of a rank that dies or of a changed placement; without them that takes new
    memory."""
    peer_copies: str = "auto"
    """Where experts that changed hands come from: "auto" measures whether peers or the checkpoint are faster, "always"
    takes a peer that has them, "never" asks peers only when the checkpoint cannot be read."""
    layout_cache: str = ""
    """Directory that keeps experts in the order in which this device reads them, for the next start; empty: none. It
    takes as much room as the experts, and may be emptied at any time."""
    canary_period: float = 60.0
    """Repeat the self-test this often while serving; 0: never."""
    epoch_patience: float = 30.0
    """How long requests wait while the group is repaired before they are refused."""
    chaos: bool = False
    """Allow faults to be put into the exchange on purpose."""
    golden: str = ""
    """File of logits that the model must reproduce, from `shoal checkpoint golden`; empty: golden.safetensors in the
    checkpoint directory, if it is there."""
    log_level: str = "info"
    """debug, info, warning or error."""
    tls: TlsConfig = field(default_factory=TlsConfig)
    """The [tls] section."""
    outbox_limit: int = 4096
    """Messages kept for one slow router before its stream is closed."""

    def __post_init__(self) -> None:
        positive = (
            "threads", "max_batch_size", "max_batch_tokens", "max_waiting", "block_size", "kv_tokens", "outbox_limit",
            "graph_memory",
        )  # fmt: skip
        for key in positive:
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"worker.{key} must be an integer of at least 1, not {value!r}")
        if not self.model:
            raise ConfigError("worker.model must name a checkpoint directory")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"worker.port must be 0 to 65535, not {self.port!r}")
        if not 0 <= self.first_port <= 65535:
            raise ConfigError(f"worker.first_port must be 0 to 65535, not {self.first_port!r}")
        if not -1 <= self.metrics_port <= 65535:
            raise ConfigError(f"worker.metrics_port must be -1 to 65535, not {self.metrics_port!r}")
        for key in ("max_context", "kv_memory", "speculative_tokens", "expert_spare_slots", "canary_period"):
            if getattr(self, key) < 0:
                raise ConfigError(f"worker.{key} must be 0 or more, not {getattr(self, key)!r}")
        for key in ("collective_timeout", "epoch_patience"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"worker.{key} must be above 0 seconds, not {getattr(self, key)!r}")
        if self.max_batch_tokens < self.max_batch_size:
            raise ConfigError(
                f"worker.max_batch_tokens ({self.max_batch_tokens}) must be at least "
                f"worker.max_batch_size ({self.max_batch_size}): each running sequence needs one token per step"
            )
        sizes = self.preferred_step_sizes
        if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
            raise ConfigError(f"worker.preferred_step_sizes must be ascending integers of at least 1, not {sizes!r}")
        if self.kv_tokens < self.block_size:
            raise ConfigError(f"worker.kv_tokens ({self.kv_tokens}) must hold a block of {self.block_size}")
        if self.sampler not in ("auto", "host", "device"):
            raise ConfigError(f'worker.sampler must be "auto", "host" or "device", not {self.sampler!r}')
        if self.graphs not in ("auto", "on", "off"):
            raise ConfigError(f'worker.graphs must be "auto", "on" or "off", not {self.graphs!r}')
        if self.peer_copies not in ("auto", "always", "never"):
            raise ConfigError(f'worker.peer_copies must be "auto", "always" or "never", not {self.peer_copies!r}')
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise ConfigError(f'worker.device must be "auto", "cpu", "cuda" or "cuda:N", not {self.device!r}')
