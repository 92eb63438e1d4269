"""What every method is judged on: data, backbones, training and cost."""
