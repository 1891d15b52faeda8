"""An image classifier behind a schema of its own: `python app.py` answers on 127.0.0.1:9000, and Ctrl-C ends it.

First, once:

    python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. classifier.proto

Preprocessor makes a sample of a picture, in two replicas; Network reads samples in batches, with the weights that
actorserve brings (a digit is its class); ImageClassifier answers. PORT in the environment: elsewhere.
"""

import os
from pathlib import Path

import classifier_pb2
import grpc
import torch
from safetensors.torch import load_file

import actorserve.handlers
from actorserve import serve
from actorserve.errors import BadInput
from actorserve.handlers.digit_picture import FULL_INK, sample_of_picture
from actorserve.handlers.digits import DigitNet
from actorserve.serve.config import gRPCOptions
from actorserve.serve.grpc_util import RayServegRPCContext
from actorserve.serve.handle import DeploymentHandle

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEIGHTS = Path(actorserve.handlers.__file__).parent / "weights" / "digits.safetensors"


@serve.deployment(num_replicas=2)
class Preprocessor:
    """Makes what the network reads."""

    def sample(self, picture: bytes) -> torch.Tensor:
        """64 intensities of a PNG or JPEG file; BadInput: it is none."""
        return torch.from_numpy(sample_of_picture(picture)).clamp(0, FULL_INK)


@serve.deployment
class Network:
    """The model."""

    def __init__(self) -> None:
        self.net = DigitNet()
        self.net.load_state_dict(load_file(WEIGHTS))
        self.net.eval()

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def probabilities(self, samples: list[torch.Tensor]) -> list[list[float]]:
        """Of each class, for each sample, in one forward."""
        with torch.inference_mode():
            return torch.softmax(self.net(torch.stack(samples)), dim=1).tolist()


@serve.deployment
class ImageClassifier:
    """Answers ImageClassificationService."""

    def __init__(self, preprocessor: DeploymentHandle, network: DeploymentHandle) -> None:
        self.preprocessor = preprocessor
        self.network = network

    async def Predict(
        self, image: classifier_pb2.ImageData, grpc_context: RayServegRPCContext
    ) -> classifier_pb2.ImageClass:
        """The three likeliest classes."""
        try:
            found = await self.network.probabilities.remote(self.preprocessor.sample.remote(image.picture))
        except BadInput as error:
            grpc_context.set_code(grpc.StatusCode.INVALID_ARGUMENT)
            grpc_context.set_details(f"picture: {error}")
            return classifier_pb2.ImageClass()
        best = sorted(range(len(NAMES)), key=lambda digit: -found[digit])[:3]
        return classifier_pb2.ImageClass(
            filename=image.filename,
            classes=[NAMES[digit] for digit in best],
            probabilities=[found[digit] for digit in best],
        )


serve.start(
    grpc_options=gRPCOptions(
        port=int(os.environ.get("PORT", "9000")),
        grpc_servicer_functions=["classifier_pb2_grpc.add_ImageClassificationServiceServicer_to_server"],
    )
)
app = ImageClassifier.bind(Preprocessor.bind(), Network.bind())
serve.run(app, name="classifier")
print("the classifier is ready", flush=True)
