"""Pictures of the bundled model through ``python -m gateway --local``: the official SDK, curl, and what is in them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import subprocess

import httpx
import numpy as np
import openai
import pytest
from PIL import Image, ImageDraw

from examples.train_tiny_shapes.scenes import COLOURS

pytestmark = pytest.mark.xdist_group("local")  # one such service is enough for two cores

SIZE = 256
CENTRE = (slice(112, 144), slice(112, 144))
CORNERS = ((slice(0, 16), slice(0, 16)), (slice(-16, None), slice(-16, None)))


@pytest.fixture
def client(local_url):
    with openai.OpenAI(base_url=f"{local_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def eager(local_url):
    async with openai.AsyncOpenAI(base_url=f"{local_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def pixels(image) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json))).convert("RGB"))


def colour(region: np.ndarray) -> str:
    """The word for the region's mean colour."""
    mean = region.reshape(-1, 3).mean(axis=0) / 255
    return min(COLOURS, key=lambda word: np.linalg.norm(mean - COLOURS[word]))


@pytest.mark.parametrize(
    ("prompt", "inside", "outside"),
    [
        ("a large red circle in the center on a white background", "red", "white"),
        ("a large blue square in the center on a yellow background", "blue", "yellow"),
        ("a large yellow circle in the center on a blue background", "yellow", "blue"),
        ("a large white diamond in the center on a black background", "white", "black"),
        ("a large green square in the center on a white background", "green", "white"),
    ],
)
def test_the_picture_shows_what_the_prompt_says(client, prompt, inside, outside):
    answer = client.images.generate(
        model="tiny-shapes", prompt=prompt, size=f"{SIZE}x{SIZE}", extra_body={"seed": 7, "num_inference_steps": 12}
    )
    picture = pixels(answer.data[0])
    assert picture.shape == (SIZE, SIZE, 3)
    assert colour(picture[CENTRE]) == inside
    assert [colour(picture[corner]) for corner in CORNERS] == [outside, outside]


def test_things_are_where_the_prompt_puts_them(client):
    prompt = "a green heart to the left of an orange square on white"
    answer = client.images.generate(
        model="tiny-shapes", prompt=prompt, size=f"{SIZE}x{SIZE}", extra_body={"seed": 5, "num_inference_steps": 12}
    )
    words = {
        (x, colour(pixels(answer.data[0])[y : y + 8, x : x + 8])) for y in range(0, SIZE, 8) for x in range(0, SIZE, 8)
    }
    green, orange = ([x for x, word in words if word == wanted] for wanted in ("green", "orange"))
    assert green
    assert orange
    assert max(green) < SIZE / 2 < min(orange)


@pytest.mark.services
@pytest.mark.parametrize("size", ["1024x1024", "1536x1024", "1024x1536"])
def test_openais_sizes_are_drawn(client, size):
    answer = client.images.generate(
        model="tiny-shapes", prompt="a red circle on white", size=size, extra_body={"steps": 1, "guidance_scale": 1.0}
    )
    height, width, _ = pixels(answer.data[0]).shape
    assert f"{width}x{height}" == size


async def test_eight_at_once_give_the_pictures_that_they_give_one_by_one(eager):
    """Different seeds, sizes, steps and guidance, so that nothing can leak from one to the other unseen."""
    requests = [
        {
            "prompt": f"a {word} circle in the center",
            "size": f"{64 + 32 * (index % 3)}x{64 + 32 * (index % 2)}",
            "extra_body": {"seed": index, "num_inference_steps": 2 + index % 4, "guidance_scale": 1.0 + index % 3},
        }
        for index, word in enumerate(["red", "green", "blue", "yellow", "black", "white", "orange", "pink"])
    ]
    alone = [(await eager.images.generate(model="tiny-shapes", **request)).data[0].b64_json for request in requests]
    answers = await asyncio.gather(*(eager.images.generate(model="tiny-shapes", **request) for request in requests))
    assert [answer.data[0].b64_json for answer in answers] == alone
    assert len(set(alone)) == len(alone)


def test_n_images_share_one_encoding_and_are_the_pictures_of_their_seeds(client):
    common = {"model": "tiny-shapes", "prompt": "a blue star that nobody else asks for", "size": "64x64"}
    raw = client.images.with_raw_response.generate(n=3, extra_body={"seed": 11, "steps": 3}, **common)
    assert raw.headers["server-timing"].count("encoder.compute") == 1
    together = [image.b64_json for image in raw.parse().data]
    singly = [
        client.images.generate(extra_body={"seed": seed, "steps": 3}, **common).data[0].b64_json
        for seed in (11, 12, 13)
    ]
    assert together == singly
    assert len(set(together)) == 3


def test_curl_gets_a_url_and_from_it_the_picture(local_url):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl on this machine")
    body = {"prompt": "a red ring", "size": "64x64", "steps": 2, "response_format": "url", "output_format": "jpeg"}
    command = [curl, "-sS", f"{local_url}/v1/images/generations", "-H", "content-type: application/json"]
    answer = json.loads(subprocess.run([*command, "-d", json.dumps(body)], capture_output=True, check=True).stdout)
    picture = subprocess.run([curl, "-sS", answer["data"][0]["url"]], capture_output=True, check=True).stdout
    assert Image.open(io.BytesIO(picture)).format == "JPEG"
    assert Image.open(io.BytesIO(picture)).size == (64, 64)


def test_the_model_is_listed_and_the_service_is_ready(client, local_url):
    assert [model.id for model in client.models.list()] == ["tiny-shapes"]
    status = httpx.get(f"{local_url}/readyz").json()
    assert all(1 <= holders <= 3 for holders in status["models"]["tiny-shapes"]["roles"].values())  # roles are elastic


def test_what_the_model_refuses_is_the_clients_mistake(client):
    with pytest.raises(openai.BadRequestError):
        client.images.generate(model="tiny-shapes", prompt="x", size="1000x1000")


def test_an_edit_starts_from_the_picture_and_keeps_its_size(client):
    """Little strength leaves the circle red, much makes it blue. The picture is no multiple of 32 wide."""
    sent = Image.new("RGB", (190, 162), "white")
    ImageDraw.Draw(sent).ellipse((45, 31, 145, 131), fill=tuple(round(255 * part) for part in COLOURS["red"]))
    file = io.BytesIO()
    sent.save(file, "PNG")
    start = np.asarray(sent.resize((192, 160)), dtype=float)
    found, distances = [], []
    for strength in (0.1, 1.0):
        answer = client.images.edit(
            model="tiny-shapes",
            image=file.getvalue(),
            prompt="a large blue circle in the center on a white background",
            extra_body={"seed": 1, "strength": strength, "guidance_scale": 1.0, "num_inference_steps": 30},
        )
        assert answer.size == "192x160"
        picture = pixels(answer.data[0])
        assert picture.shape == (160, 192, 3)
        assert colour(picture[:12, :12]) == "white"
        found.append(colour(picture[70:90, 86:106]))
        distances.append(float(np.abs(picture - start).mean()))
    assert found == ["red", "blue"]
    assert distances[0] < 0.5 * distances[1]
