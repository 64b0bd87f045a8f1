"""The colours of the pictures."""

Colour = tuple[int, int, int]
RED, YELLOW, GREEN, OFF = (255, 40, 30), (255, 205, 0), (30, 235, 90), (58, 60, 62)
WHITE, BLACK, ORANGE = (245, 245, 240), (18, 18, 20), (255, 112, 10)
PAVEMENT, ASPHALT, POLE, SHADOW = (176, 172, 164), (84, 86, 92), (112, 114, 118), (46, 48, 52)
WINDOW, DARK_RED, SKIN, MAGENTA, CYAN = (52, 66, 82), (122, 22, 26), (236, 190, 158), (226, 36, 150), (0, 214, 236)
LIME = (178, 246, 26)
CAR_COLOURS = ((38, 84, 150), (225, 228, 230), (52, 156, 204), (24, 122, 100), (196, 176, 130), (116, 96, 180))


def shaded(colour: Colour, light: float = .72) -> Colour:
    red, green, blue = colour
    return int(red * light), int(green * light), int(blue * light)


def pale(colour: Colour) -> Colour:
    red, green, blue = ((255 + part) // 2 for part in colour)
    return red, green, blue
