"""Train a spiking network with a feedback connection in an ordinary PyTorch loop.

A picture is read column by column from left to right, so its width W is the time axis: T = 28
steps of H = 28 pixels each. N is the number of pictures. The package draws the pictures itself.

    python docs/examples/minimal.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rsnn_fmnist.data.synthetic import draw
from rsnn_fmnist.spiking import IF, LinearRecurrentContainer

CLASSES = 10


class FeedbackNetwork(nn.Module):
    """Two layers of spiking neurons; the hidden spikes are fed back one step later."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28, hidden)
        # An integrate-and-fire (IF) neuron adds up its input. When the sum reaches 1, it fires and
        # starts again at 0. A spike has no slope, so the backward pass uses a surrogate gradient;
        # detach_reset=True keeps gradients from flowing through the reset.
        # The container concatenates the input with the previous spikes, and a linear layer of its
        # own computes from them what the neurons receive.
        self.sn1 = LinearRecurrentContainer(IF(detach_reset=True), hidden, hidden)
        self.fc2 = nn.Linear(hidden, CLASSES)
        self.sn2 = IF(detach_reset=True)

    def forward(self, pictures: Tensor) -> Tensor:
        columns = pictures.permute(2, 0, 1)  # [N, H, W] -> [T, N, H]
        hidden_spikes = self.sn1(self.fc1(columns))  # [T, N, H] -> [T, N, hidden], 0 or 1
        output_spikes = self.sn2(self.fc2(hidden_spikes))  # [T, N, hidden] -> [T, N, 10], 0 or 1
        return output_spikes.mean(0)  # [T, N, 10] -> [N, 10], firing rates from 0 to 1


def synthetic_set(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw pictures [count, H, W], float from 0 to 1, and their labels [count]."""
    pictures, labels = draw(count, seed)  # NumPy arrays; pixels are uint8 from 0 to 255
    return torch.from_numpy(pictures) / 255, torch.from_numpy(labels)


def accuracy(network: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """The percentage of pictures that the network classifies correctly."""
    with torch.no_grad():
        answers = network(pictures).argmax(1)  # [N, 10] -> [N], the class that fires most
    return 100 * (answers == labels).float().mean().item()


torch.manual_seed(2020)
train_pictures, train_labels = synthetic_set(10_000, seed=1)
test_pictures, test_labels = synthetic_set(2_000, seed=2)

network = FeedbackNetwork()
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

for epoch in range(5):
    for batch in torch.randperm(len(train_pictures)).split(128):
        rates = network(train_pictures[batch])  # from rest: no state is left from the last call
        targets = functional.one_hot(train_labels[batch], CLASSES).float()  # [N] -> [N, 10]
        loss = functional.mse_loss(rates, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    percent = accuracy(network, test_pictures, test_labels)  # chance is 10 %
    print(f"epoch {epoch}: loss {loss.item():.4f}, test accuracy {percent:.1f} %")
