"""Keys of what a training of the model logs, for dashboards; drawn over optimizer steps."""

LOSS = "dpm/loss"
LOSS_TRAIN, LOSS_HELDOUT = "dpm/val/loss_train", "dpm/val/loss_heldout"
