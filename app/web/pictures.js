// Pictures as data URLs, made smaller if they are large: the model sees no more than this anyway.

const MOST_BYTES = 1_500_000;
const MOST_PIXELS = 1600; // of the longer side

/** Returns the picture in a file as a data URL. */
export async function pictureUrl(file) {
  if (file.size <= MOST_BYTES) return fileUrl(file);
  const picture = await createImageBitmap(file);
  const scale = Math.min(1, MOST_PIXELS / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(scale * picture.width);
  canvas.height = Math.round(scale * picture.height);
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}

function fileUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
