"""Ready-made worlds: values for the tables [network], [devices] and [availability] of a course file, by name.

`lan`: one room, nothing breaks. All numbers are chosen.

`wan`: data centres or offices on different continents. All numbers are chosen.

`phones`: smartphones at home that take part while they idle, charge and are on WiFi. Bandwidths and latency are the
world's means on mobile networks of September 2020 in Ookla's Speedtest Global Index: 36 Mbit/s down, 11 Mbit/s up,
40 ms. That there are four times as many by night as by day, and that 6 to 10 % are lost in a round, here of some four
minutes, is from K. Bonawitz et al.: "Towards Federated Learning at Scale: System Design", MLSys 2019,
https://arxiv.org/abs/1902.01046; C. Yang et al.: "FLASH: Heterogeneity-Aware Federated Learning at Scale", IEEE TMC
2022, https://doi.org/10.1109/tmc.2022.3214234, lost more than 10 % with traces of 136,000 phones. The speeds, their
spread (the slowest twentieth takes seven times as long as the fastest) and the share that is online are chosen.

`hospitals`: servers behind the uplinks of institutions, with a short maintenance once in a while. All is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["PROFILES"]

Tables = Mapping[str, Mapping[str, float]]

PROFILES: Mapping[str, Tables] = MappingProxyType(
    {
        "lan": {
            "network": {"latency_ms": 0.2, "jitter": 0.1, "uplink_mbps": 1000, "downlink_mbps": 1000},
            "devices": {"spread": 0.1},
            "availability": {},
        },
        "wan": {
            "network": {
                "latency_ms": 60, "latency_spread": 0.5, "jitter": 0.2, "uplink_mbps": 200, "downlink_mbps": 500,
                "bandwidth_spread": 0.3, "loss_every_seconds": 86_400,
            },
            "devices": {"spread": 0.3},
            "availability": {},
        },
        "phones": {
            "network": {
                "latency_ms": 40, "latency_spread": 0.5, "jitter": 0.5, "uplink_mbps": 11, "downlink_mbps": 36,
                "bandwidth_spread": 0.7, "coordinator_mbps": 10_000, "loss_every_seconds": 14_400,
            },
            "devices": {"examples_per_second": 500, "spread": 0.6, "stragglers": 0.05, "straggler_factor": 5},
            "availability": {"online_seconds": 3_600, "offline_seconds": 10_800, "day_swing": 0.7},
        },
        "hospitals": {
            "network": {
                "latency_ms": 15, "latency_spread": 0.3, "jitter": 0.1, "uplink_mbps": 100, "downlink_mbps": 100,
                "bandwidth_spread": 0.5, "loss_every_seconds": 86_400,
            },
            "devices": {"examples_per_second": 10_000, "spread": 0.4},
            "availability": {"online_seconds": 1_209_600, "offline_seconds": 3_600},
        },
    }
)  # fmt: skip
