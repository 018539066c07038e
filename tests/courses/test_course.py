from dataclasses import replace

import pytest

from p2pfl.courses.adpsgd import ADPSGD, AdpsgdSettings
from p2pfl.courses.apfl import APFL, ApflSettings
from p2pfl.courses.baselines import LOCAL, POOLED, LocalSettings, PooledSettings
from p2pfl.courses.choco import CHOCO, ChocoSettings
from p2pfl.courses.d2 import D2, D2Settings
from p2pfl.courses.deepsqueeze import DEEPSQUEEZE, DeepSqueezeSettings
from p2pfl.courses.dfedavgm import DFEDAVGM, DfedavgmSettings
from p2pfl.courses.diloco import DILOCO, DilocoSettings
from p2pfl.courses.ditto import DITTO, DittoSettings
from p2pfl.courses.dpsgd import DPSGD, DpsgdSettings
from p2pfl.courses.epidemic import EPIDEMIC, EpidemicSettings
from p2pfl.courses.fedavg import FEDAVG, FedAvgSettings
from p2pfl.courses.fedbabu import FEDBABU, FedBabuSettings
from p2pfl.courses.fedbuff import FEDASYNC, FEDBUFF, FedAsyncSettings, FedBuffSettings
from p2pfl.courses.feddyn import FEDDYN, FedDynSettings
from p2pfl.courses.fedem import FEDEM, FedEmSettings
from p2pfl.courses.fednova import FEDNOVA, FedNovaSettings
from p2pfl.courses.fedopt import FEDAVGM, FEDOPT, FedAvgMSettings, FedOptSettings
from p2pfl.courses.fedproto import FEDPROTO, FedProtoSettings
from p2pfl.courses.fedprox import FEDPROX, FedProxSettings
from p2pfl.courses.fedrep import FEDREP, FedRepSettings
from p2pfl.courses.fedswa import FEDSWA, FedSwaSettings
from p2pfl.courses.gossip_diloco import GOSSIP_DILOCO, GossipDilocoSettings
from p2pfl.courses.gossiplearning import GOSSIP_LEARNING, GossipLearningSettings
from p2pfl.courses.gradtrack import GRADTRACK, GradtrackSettings
from p2pfl.courses.hierarchical import HIERARCHICAL, HierarchicalSettings
from p2pfl.courses.ifca import IFCA, IfcaSettings
from p2pfl.courses.jwins import JWINS, JwinsSettings
from p2pfl.courses.partial import FEDBN, FEDPER, LGFEDAVG, FedBnSettings, FedPerSettings, LgFedAvgSettings
from p2pfl.courses.pens import PENS, PensSettings
from p2pfl.courses.perfedavg import PERFEDAVG, PerFedAvgSettings
from p2pfl.courses.pfedme import PFEDME, PFedMeSettings
from p2pfl.courses.plexus import PLEXUS, PlexusSettings
from p2pfl.courses.powergossip import POWERGOSSIP, PowerGossipSettings
from p2pfl.courses.pushsum import PUSHSUM, PushsumSettings
from p2pfl.courses.qfedavg import QFEDAVG, QFedAvgSettings
from p2pfl.courses.qgm import QGM, QgmSettings
from p2pfl.courses.relaysgd import RELAYSGD, RelaysgdSettings
from p2pfl.courses.scaffold import SCAFFOLD, ScaffoldSettings
from p2pfl.courses.secagg import CONSISTENT
from p2pfl.courses.swift import SWIFT, SwiftSettings
from p2pfl.courses.teleportation import TELEPORTATION, TeleportationSettings
from p2pfl.learn.compression import CompressSpec, DownSpec, UpSpec
from p2pfl.topology.families import build
from tests.courses.kit import check_course

COMPRESS = CompressSpec(UpSpec(select="top-k", values="qsgd", bits=4), DownSpec(values="uniform"))
COMPRESSED = replace(FEDAVG, play=lambda place: FEDAVG.play(replace(place, compress=COMPRESS)))
SECRET = replace(FEDAVG, roles=FEDAVG.secret[CONSISTENT])
ADDITIVE = replace(FEDAVG, roles=FEDAVG.secret["additive"])

COURSES = {
    "choco": (
        replace(CHOCO, play=lambda place: CHOCO.play(replace(place, compress=CompressSpec(COMPRESS.up)))),
        ChocoSettings(rounds=3),
        build("ring", 5),
    ),
    "jwins": (JWINS, JwinsSettings(rounds=3), build("one-peer-exponential", 4)),
    "powergossip": (POWERGOSSIP, PowerGossipSettings(rounds=3, rank=2), build("ring", 5)),
    "deepsqueeze": (
        replace(DEEPSQUEEZE, play=lambda place: DEEPSQUEEZE.play(replace(place, compress=CompressSpec(COMPRESS.up)))),
        DeepSqueezeSettings(rounds=3),
        build("one-peer-exponential", 4),
    ),
    "fedavg, compressed": (COMPRESSED, FedAvgSettings(rounds=3), build("star", 5)),
    "fedavg": (FEDAVG, FedAvgSettings(rounds=3), build("star", 5)),
    "fedavg, all settings": (
        FEDAVG,
        FedAvgSettings(rounds=3, fraction=0.5, over_selection=0.5, evaluate="both", weights="equal", keep="best"),
        build("star", 7),
    ),
    "fedavg, secagg": (SECRET, FedAvgSettings(rounds=3, privacy="secagg"), build("star", 5)),
    "fedavg, secagg+consistency": (
        SECRET,
        FedAvgSettings(rounds=3, privacy=CONSISTENT, fraction=0.7, weights="equal"),
        build("star", 7),
    ),
    "fedavg, additive": (ADDITIVE, FedAvgSettings(rounds=3, privacy="additive"), build("star", 5)),
    "fedavg, oort": (FEDAVG, FedAvgSettings(rounds=3, fraction=0.5, sampler="oort"), build("star", 7)),
    "fedbuff": (FEDBUFF, FedBuffSettings(rounds=3, goal=2, concurrency=3), build("star", 6)),
    "fedbuff, time": (
        FEDBUFF,
        FedBuffSettings(rounds=3, goal=9, time_seconds=0.01, broadcast="after_aggregating", evaluate="both"),
        build("star", 6),
    ),
    "fedasync": (FEDASYNC, FedAsyncSettings(rounds=4, discount="hinge"), build("star", 5)),
    "fedprox": (FEDPROX, FedProxSettings(rounds=3, mu=0.1, stragglers=0.5), build("star", 5)),
    "scaffold": (SCAFFOLD, ScaffoldSettings(rounds=3, fraction=0.5), build("star", 5)),
    "feddyn": (FEDDYN, FedDynSettings(rounds=3, alpha=0.1, fraction=0.5), build("star", 5)),
    "fedopt": (FEDOPT, FedOptSettings(rounds=3), build("star", 5)),
    "fedavgm": (FEDAVGM, FedAvgMSettings(rounds=3), build("star", 5)),
    "diloco": (DILOCO, DilocoSettings(rounds=3, fraction=0.5), build("star", 5)),
    "fednova": (FEDNOVA, FedNovaSettings(rounds=3), build("star", 5)),
    "qfedavg": (QFEDAVG, QFedAvgSettings(rounds=3), build("star", 5)),
    "fedswa": (FEDSWA, FedSwaSettings(rounds=3, swa_start=0.4), build("star", 5)),
    "fedbn": (FEDBN, FedBnSettings(rounds=3, private=("1.bias",)), build("star", 5)),
    "fedper": (FEDPER, FedPerSettings(rounds=3, private=("1.bias",)), build("star", 5)),
    "lgfedavg": (LGFEDAVG, LgFedAvgSettings(rounds=3, private=("1.bias",), evaluate="both"), build("star", 5)),
    "fedrep": (FEDREP, FedRepSettings(rounds=3, private=("1.bias",)), build("star", 5)),
    "fedavg, tuned": (FEDAVG, FedAvgSettings(rounds=3, evaluate="both", finetune_epochs=2), build("star", 5)),
    "fedbabu": (FEDBABU, FedBabuSettings(rounds=3, private=("1.bias",)), build("star", 5)),
    "perfedavg": (PERFEDAVG, PerFedAvgSettings(rounds=3, delta=0.01), build("star", 5)),
    "ifca": (IFCA, IfcaSettings(rounds=3, fraction=0.5, evaluate="both"), build("star", 5)),
    "fedem": (FEDEM, FedEmSettings(rounds=3, fraction=0.5, evaluate="both"), build("star", 5)),
    "ditto": (DITTO, DittoSettings(rounds=3, fraction=0.5), build("star", 5)),
    "pfedme": (PFEDME, PFedMeSettings(rounds=3), build("star", 5)),
    "apfl": (APFL, ApflSettings(rounds=3), build("star", 5)),
    "pooled": (POOLED, PooledSettings(rounds=3), build("star", 5)),
    "hierarchical": (HIERARCHICAL, HierarchicalSettings(rounds=2, edge_rounds=2), build("hierarchy", 7)),
    "dpsgd": (DPSGD, DpsgdSettings(rounds=3), build("ring", 5)),
    "dpsgd, combine": (DPSGD, DpsgdSettings(rounds=3, order="combine"), build("one-peer-exponential", 4)),
    "adpsgd": (ADPSGD, AdpsgdSettings(rounds=3), build("ring", 4)),
    "d2": (D2, D2Settings(rounds=3), build("ring", 5)),
    "gradtrack": (GRADTRACK, GradtrackSettings(rounds=3), build("random-matching", 4)),
    "qgm": (QGM, QgmSettings(rounds=3), build("ring", 5)),
    "dfedavgm": (DFEDAVGM, DfedavgmSettings(rounds=3), build("one-peer-exponential", 4)),
    "gossip-diloco": (GOSSIP_DILOCO, GossipDilocoSettings(rounds=3), build("ring", 5)),
    "relaysgd": (RELAYSGD, RelaysgdSettings(rounds=3), build("chain", 5)),
    "epidemic": (EPIDEMIC, EpidemicSettings(rounds=3, fanout=2), build("full", 5)),
    "gossip-learning": (GOSSIP_LEARNING, GossipLearningSettings(rounds=3), build("ring", 5)),
    "gossip-learning, tokens": (
        GOSSIP_LEARNING,
        GossipLearningSettings(rounds=4, account="randomized", capacity=3, merge_limit=20),
        build("full", 4),
    ),
    "pens": (PENS, PensSettings(rounds=4, selection_rounds=2, candidates=2, best=1, fanout=2), build("full", 4)),
    "swift": (SWIFT, SwiftSettings(rounds=3, discount="exponential"), build("ring", 5)),
    "plexus": (PLEXUS, PlexusSettings(rounds=4, sample=2), build("full", 5)),
    "teleportation": (TELEPORTATION, TeleportationSettings(rounds=4, sample=3), build("full", 5)),
    "pushsum": (PUSHSUM, PushsumSettings(rounds=3), build("exponential", 5)),
    "pushsum, free": (PUSHSUM, PushsumSettings(rounds=3, pace="free"), build("ring", 4)),
}


STILL_SERVERS = {"fedproto": (FEDPROTO, FedProtoSettings(rounds=3)), "local": (LOCAL, LocalSettings(rounds=3))}


@pytest.mark.parametrize(("course", "settings"), STILL_SERVERS.values(), ids=STILL_SERVERS)
def test_conformance_where_the_server_does_not_learn(course, settings):
    check_course(course, settings, build("star", 5), still=(0,))


@pytest.mark.parametrize(("course", "settings", "topology"), COURSES.values(), ids=COURSES)
def test_conformance(course, settings, topology):
    check_course(course, settings, topology)
