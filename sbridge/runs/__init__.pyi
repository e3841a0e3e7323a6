from sbridge.runs.checkpoints import Checkpoint as Checkpoint, History as History, Stopped as Stopped
from sbridge.runs.files import RUN_FORMAT as RUN_FORMAT, RunFiles as RunFiles
from sbridge.runs.fitting import Observer as Observer, train as train
from sbridge.runs.folder import ClaimedFolder as ClaimedFolder, RunFolder as RunFolder, differences as differences
