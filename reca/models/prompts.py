"""Templates of L_RecA: the prompts under which a model reconstructs an image ("describe the image in detail").

A template says nothing about the image; it only has to be a request that understanding models answer in detail.
Many wordings keep the model from tying reconstruction to a single phrase. The list is our own. Its first
:data:`SIMPLE` entries use plain words only: they suit tiny models with a small vocabulary.
"""

from collections.abc import Sequence

from reca.runtime.seeding import derive_seed

SIMPLE = 8
"""Number of templates at the start of the list that are short, lower case and without punctuation."""


def choose_templates(seeds: Sequence[int], count: int | None = None) -> list[str]:
    """Return one template per seed; the same seed gives the same template in every process.

    Args:
        seeds: One seed per sample.
        count: Number of templates to choose from, the first of the list; ``None``: all.

    Raises:
        ValueError: ``count`` is not between 1 and the number of templates.
    """
    limit = len(TEMPLATES) if count is None else count
    if not 1 <= limit <= len(TEMPLATES):
        raise ValueError(f"train.prompt_templates is {limit}; there are {len(TEMPLATES)} templates: choose 1 to that")
    return [TEMPLATES[derive_seed("template", seed) % limit] for seed in seeds]


TEMPLATES: tuple[str, ...] = tuple(
    """\
describe the image in detail
describe this image
draw the image in detail
rebuild the image in detail
describe the picture in full
draw this picture again
show the image in detail
say what the image shows
Describe everything you can see in this image, from the main subject down to the smallest detail.
Write a thorough description of the picture, covering its subject, setting, colours and mood.
Give a complete account of the image so that someone could paint it without seeing it.
Reconstruct the image as faithfully as you can, keeping every object where it stands.
Look closely at the image and tell me all that it contains.
What is in this picture? Name each object, its colour and its place.
Explain the content of the image in as much depth as possible.
Provide a detailed caption that leaves nothing out.
Redraw the image with the same objects, colours, positions and background.
Walk me through this image from left to right and from top to bottom.
List the objects in the image together with their number, colour, size and location.
How many things are there in the picture, and how do they relate to one another?
Study the image and report its colours, shapes, textures and lighting.
Tell me about the foreground, the middle ground and the background of the image.
Describe the scene as if you were explaining it to an artist who has to copy it.
Summarise the picture first, then go through its details one by one.
Characterise the image: what it shows, how it is composed and which style it is made in.
Recreate this picture exactly as you perceive it.
Put the image into words, with special care for the positions of the objects.
What would a careful observer note about this image?
Describe the picture's subject, its surroundings and the light that falls on it.
Name every visible element of the image and say where each one is.
Render the same image again with no change in content or style.
Write down what the image shows, including shapes, quantities and spatial arrangement.
Give an exhaustive description of the visual content, including text if there is any.
Describe the image in a way that would allow it to be drawn again.
Which colours appear in this image, and on which objects?
Say what stands in the centre of the image and what lies around it.
Report the main subject, its pose, its appearance and the place in which it is found.
Analyse the composition of the image: balance, perspective, framing and focus.
Describe this photograph in detail, including the angle it was taken from.
Reproduce the image from your understanding of it.
Count the objects in the image and describe each of them.
Give a precise description of the shapes in the image and their outlines.
Describe the textures and materials that you can make out in the picture.
Explain where the objects stand relative to each other: left, right, above, below, in front or behind.
What does the background of this image look like?
Tell the whole story of this picture, with every visual detail.
Describe the quality of the image: is it sharp, blurred, noisy, bright or dark?
Compose a long and accurate caption for this image.
Describe the objects by size, starting with the largest one.
Draw what you see, keeping the layout, the palette and the proportions.
Inspect the image carefully and describe its content without guessing.
Describe the artistic style of the picture and the techniques that seem to have been used.
Transcribe any writing in the image and describe everything else around it.
What are the dominant colours of the image, and how are they distributed?
Give me a description rich enough to rebuild this image from scratch.
Report what is happening in the image, who or what takes part and where it takes place.
Describe the arrangement of the items in the picture as exactly as you can.
Break the image down into its parts and describe each part.
Speak about the light in the image: its direction, its strength and the shadows that it casts.
Reconstruct the scene with the right number of objects in the right places.
Describe the picture for a person who cannot see it.
State the kind of image this is, then describe its content in full.
Cover the image region by region: each corner, each edge and the middle.
What objects can be seen, which colours do they have and how large are they?
Produce a faithful copy of the picture.
Describe the image objectively, naming only what is really visible.
Point out the small details of the image that one overlooks at first sight.
Describe the people, animals, plants or things in this image and what they look like.
Give an account of the geometry in the image: lines, curves, angles and symmetry.
Tell me what the image depicts and how it is depicted.
Describe the mood of the picture and the visual means that create it.
Create the same picture once more, down to its fine details.
In several sentences, describe the image, its objects and their attributes.
Describe the spatial layout of the scene, beginning with what is nearest.
What is the setting of the image, and what time of day or season does it suggest?
Write an image description that mentions each colour you see.
Describe each object in the picture by its shape, colour, material and state.
Reproduce the layout and appearance of this image in every respect.
Give a factual description of the image in plain language.
Name the main object, then describe all others in order of importance.
Describe the contrast, the saturation and the overall tone of the picture.
What can be found in the upper half of the image, and what in the lower half?
What stands on the left side of the picture, and what on the right?
Describe the image as a catalogue entry would, completely and exactly.
Depict the scene again so that nothing is lost.
Note the number of objects of each kind and describe how they are placed.
Describe how the objects in the image overlap, touch or keep apart.
Tell me the subject, the style, the medium and the colours of this image.
Produce a dense caption with objects, attributes and relations.
Describe the image the way a museum guide would describe a painting to visitors.
Describe the view: what is close, what is far and what lies between.
Look at the picture and describe its patterns, surfaces and edges.
Rebuild the picture from its meaning: same things, same colours, same places.
State clearly what the image shows and how its elements are arranged.
Describe the clothing, posture and expression of anyone in the image, and all that surrounds them.
Give a visual inventory of this picture.
What shapes do you recognise in the image, and where are they?
Describe the image with attention to number: how many of each thing are there?
Describe the image with attention to colour: which shade belongs to which thing?
Describe the image with attention to place: what is where?
Describe the image with attention to style: how does it look as a whole?
Draw a picture that matches this one in content, colour and composition.
Explain what you observe in the image, object after object.
Give the details of the image that a painter would need: palette, light, forms and layout.
Convert the image into a careful written description.
Describe the weather, the light and the landscape, if the image shows any, and all that is in it.
Which objects are in the image, and what distinguishes one from another?
Set out the content of the image in an orderly way.
Describe the frame of the picture: what is cut off and what is fully visible?
Describe the texture of the surfaces and the way that light plays on them.
Outline the picture in one sentence and then elaborate on each element.
Recreate the photograph with its original framing and colours.
Describe the image from the overall impression to the particulars.
Describe the image from the particulars to the overall impression.
Mention each thing in the image, its colour and what is next to it.
Give a full report on the visual features of this image.
What would you have to tell someone so that they could imagine this picture correctly?
Describe the proportions of the objects and the distances between them.
Report any letters, numbers, signs or logos in the image and describe their surroundings.
Draw the scene again with identical objects on an identical background.
Describe this illustration in every detail that you can make out.
Describe the visible scene in full sentences, without leaving out the background.
What is the image about, and which details support that?
Describe the image thoroughly, with its objects, their features and their relations.
Give an accurate picture in words: forms, hues, sizes and places.
Name what you see first, second and third in the image, and describe each of them.
Describe the depth of the scene and how the objects are spread over it.
Restore the image from its description in your mind.
Describe the image so precisely that it cannot be mistaken for another one.
Which elements make up this image, and how are they combined?
Describe the centre of attention and everything that leads the eye to it.
Write about the image: its content, its colours, its structure and its finish.
Tell me every fact that can be read off this image.
Describe the colours of the background and of each object in front of it.
Visualise the image once again and show it with all its details.
Describe all objects with their orientation: upright, tilted, turned or upside down.
Describe the scene's layout on an imaginary grid of three rows and three columns.
Give a description of the image that covers what, where, how many and in which colour.
Comment on the clarity and resolution of the image, then describe what it shows.
Draw the image again as closely as you are able.
What kinds of things are in the image, and how many of each kind?
Describe the visual style, for instance photograph, drawing, render or painting, and the content.
Describe the outlines first, then the colours, then the details.
Describe the objects in the image and the relations that hold between them.
Present the content of the picture in a clear and complete manner.
Describe the main figure of the image and the scene around it with great care.
Say where the light comes from in the image and what it reveals.
Bring this image back in full, with its subject and its surroundings.
Describe the image for a search engine: all objects, attributes, actions and places.
Describe what an exact copy of this image would have to contain.
Give a careful description of every region of the image.
Make the image again from what you know about it.
Describe the picture's elements and say how prominent each one is.
Describe the silhouettes, the fills and the borders of the shapes in the picture.
What is the relation between the objects in the picture, and which is the largest?
Describe the image in a structured way: subject, attributes, background, style, quality.
Describe the image without interpretation: only colours, forms, numbers and places.
Explain the scene, its actors and its props.
Sketch the scene in words, leaving out no object.
Give the reader a clear idea of this picture and all of its parts.
Describe the materials: wood, metal, glass, cloth, stone, skin or whatever the image shows.
Tell me what colours, shapes and objects make up this picture.
Generate an image that shows the same content in the same arrangement.
Describe how crowded or how empty the image is and what fills it.
Describe the visible details of the subject from top to bottom.
Describe the picture clockwise, starting at the top.
Identify every object in this image and describe how it looks.
Describe the picture as a witness would: exactly, soberly and completely.
What is shown, in what number, in which colours and at which positions?
Describe the perspective of the image and the viewpoint of its maker.
Describe the image, its theme, its design and its execution.
Copy the image by describing all that it contains.
Describe the image element by element and end with the overall effect.
Describe the background first and then what stands in front of it.
Describe what stands in front first and then the background.
Describe the most striking colour of the image and then all the others.
Give as many true statements about this image as you can.
Describe the picture's content in neutral and exact terms.
What might one draw first, second and last when copying this image?
Describe the scene so that its layout could be checked with a ruler.
Describe which objects are alike in the image and which differ.
Draw the picture with its true colours and true positions.
Describe the image with its foreground objects and the space around them.
Describe how the image is lit, how it is coloured and what is in it.
Please describe this image in great detail.
Please draw this image again with all of its details.
Please tell me what this picture contains.
Please give a full description of the scene and its objects.
Please reconstruct the picture, including its background and style.
Could you describe the image, including the number and the colours of its objects?
Could you redraw this picture for me, as exactly as possible?
Could you tell me what is to be seen here, and where?
Can you give a detailed analysis of this picture?
Can you recreate the image with each object in its place?
Can you describe the look of this image, its shapes and its tones?
I would like a detailed description of this image.
I want to see the same image again; keep its objects, colours and layout.
I need an accurate account of what this picture shows.
Imagine that the picture is gone and has to be restored: describe it.
Imagine that you explain this picture over the telephone.
Suppose a friend wants to draw this image; describe it to them.
Suppose this image has to be found among thousands; describe what sets it apart.
As an art critic, describe the image, its form and its content.
As a photographer, describe the picture, its light, lens and framing.
As a designer, describe the layout, the palette and the shapes in the image.
As a scientist, record what the image shows, with counts and positions.
As a teacher, explain to a class what can be seen in the image.
As an archivist, write a complete record of this image.
As a painter, name the colours and forms that you would need for this image.
For the record, describe the image in its entirety.
For an audio guide, describe this picture in detail.
For a blind reader, describe the image and the place of everything in it.
For a set designer, describe the scene and all of its objects.
For a detailed index, name the objects, colours and actions in the image.
In detail, what does this image show?
In your own words, describe the image and its visual features.
In a few rich sentences, describe what the picture looks like.
In one paragraph, describe the image completely.
In a list, give the objects of the image with colour, count and position.
With care for detail, describe the picture from edge to edge.
With exact positions and colours, describe the objects in the image.
With regard to shape and colour, describe all that the image contains.
With no detail left out, draw the image again.
Without adding anything, describe what is in the image.
Without leaving anything out, describe what is in the image.
Beginning with the overall scene, describe the image in detail.
Beginning at the top left, describe the contents of the image.
Starting from its centre, describe the picture outwards.
Taking your time, describe each part of the image.
Using precise words for colour and form, describe the image.
Using everything you understood about the image, draw it again.
Based on what you see, write a detailed description of the image.
Based on your understanding, reconstruct the image.
From memory, draw the image once more in detail.
From what you perceive, restate the image completely.
Focus on the objects of the image: describe their number, look and place.
Focus on the background of the image, then on the objects before it.
Focus on colours and describe where each one is found in the image.
Focus on shapes and describe how they are spread over the image.
Focus on style and quality, then describe the content of the image.
Pay attention to spatial relations and describe the image accordingly.
Pay attention to small things and describe the image with all of them.
Pay attention to the counts: how many of each object does the image hold?
Pay attention to light and shade and describe how they model the objects.
Consider the image as a whole and in its parts, and describe both.
Consider each object in the image and state its attributes.
Examine the picture and give a detailed report of its contents.
Examine the shapes, colours and positions in the image and describe them.
Observe the image and write what you notice, in order of importance.
Observe how the objects are arranged and describe the arrangement.
Survey the image and describe everything of note.
Scan the picture line by line and describe what you meet.
View the image and describe its subject, setting and style in depth.
Go over the image again and again until every detail has been named.
Zoom in on each object and describe its appearance.
Take stock of the image: what is there, and what does it look like?
Map out the image: say which object occupies which area.
Depict this image in words, with its colours, forms and layout.
Portray the content of this image as fully as possible.
Detail the elements of the image, their features and their positions.
Specify the objects in the picture, their shades and their sizes.
Record the visual content of the image accurately.
Restate the image: same scene, same objects, same appearance.
Replicate the image with the same subject and the same composition.
Regenerate this picture and keep its structure, its colours and its texture.
Repaint the picture with the same brush, palette and motif.
Reassemble the scene from its objects, each in its own colour and place.
Render the scene anew, true to shape, number and position.
Illustrate the scene exactly as it was given.
Draw all objects of the image where they belong.
Draw the background of the image and then each object in it.
Draw the same shapes in the same colours at the same places.
Draw the image again, neither adding nor removing anything.
Show the picture once more in full quality.
Show all objects of the scene in their correct number and colour.
Produce the picture that corresponds to what you have understood.
Produce an accurate rendition of the image, background included.
Create a detailed depiction of everything the image contains.
Create an image identical in content, colour and layout.
Bring out each object of the image with its colour, size and location.
Reveal all that the image holds, in words or in lines.
Describe the picture, its palette, its rhythm and its order.
Describe where things begin and end in the image and which colours they have.
Describe the image, giving each object its right colour and its right neighbour.
Describe the image by answering: which objects, which colours, which places, which style?
Describe the relative sizes of the things in the image and where they are.
Describe the image at three levels: the scene, the objects, the details.
Describe the state and the action of everything in the image.
Describe the scene and mention what is partly hidden.
Describe the scene and mention what is repeated.
Describe the scene and mention which object is alone and which ones form a group.
Describe the image's symmetry, or the lack of it, and its visual weight.
Describe the colours from the most common to the rarest.
Describe the tones of the image from the darkest to the lightest.
Describe the transition between the objects and the background.
Describe the sharp and the soft parts of the image.
Describe the horizontal order of the objects, then their vertical order.
Describe the texture, the pattern and the colour of each surface.
Describe the visible text, if any, its typeface and its place in the image.
Describe the kind of camera shot or drawing this seems to be, and what it shows.
Describe the world that this image shows and the things that belong to it.
Describe the image once briefly and once at length.
Describe the picture so that its description and the picture say the same.
What do you see? Be exact about colours, counts and positions.
What do you see? Be exact about style, light and background.
What makes up this scene, and how is it put together?
What does each part of the image look like?
What details give this image its character?
What is where in the image, and in which colour?
What would be needed to draw this image again?
Which things are in the picture, which are near each other and which are far apart?
Which shapes, which colours and which places: describe the image by these three.
How would you describe this image to someone who has to rebuild it?
How is the image composed, and what are its components?
How are the objects coloured, how are they placed and how many are there?
How does the image look overall, and how do its parts look?
Where is each object in the image, and what surrounds it?
Where does each colour occur in the image, and on what?
Who or what appears in the image, and how is it shown?
""".splitlines()
)
