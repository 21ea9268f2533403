"""From a model's code to ATen graphs, with or without weights: Dynamo, AOTAutograd, joint graphs."""
