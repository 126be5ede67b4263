"""What a run of training is made of: options, task, folder, processes; the loop itself is `training`."""
